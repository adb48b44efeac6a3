"""This program on an emulated ARM64 machine: what it finds, runs and sends back there.

`make arm64-check`, or `python -m benchmarks.arm64 [--folder F] [--cpu cortex-a76]`

`doctor`, `run --device ssh://` and a kit, each with the command that a user types. Every model's
pixels there are compared with the same file's pixels on this machine, and what the runtime says
that it executes is read back. Nothing is timed: an emulated processor's times mean nothing. Needs
Linux on x86-64, mmdebstrap, dpkg, sshd, and the network the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.arm64.loopback import serve
from benchmarks.arm64.root import make_python, qemu_version
from mipkd.core import plugins
from mipkd.core.images import read_rgb
from mipkd.core.precision import executed_precision
from pipeline.bench.differences import compare_images
from pipeline.bench.pixels import output_file
from pipeline.bundle.golden import GOLDEN, LR, golden_folder, names_in
from pipeline.bundle.manifest import Model, read
from pipeline.bundle.replay import Replayed
from targets._images import upscale
from targets.base import ByteArray, find

ROOT = Path(__file__).resolve().parents[2]
_SIDE = 64  # HR pixels of the images: an emulated processor is a hundred times slower
_QUICK = ("--demo-data", "--size", "32x32", "--set", "quantize.search=false")
_QUICK += ("--set", "bench.max_busy=1")
_TARGETS = ("cpu", "openvino", "litert", "ncnn")
_HEAD = ("target", "asked", "runs on ARM", "runs on x86", "levels apart", "dB", "within tolerance")


@dataclass(frozen=True)
class Row:
    """One model there and here."""

    target: str
    precision: str
    kind: str  # how its figures came about
    kernels: dict[str, int]  # there, by precision; empty where the runtime does not tell
    kernels_here: dict[str, int]
    levels: int
    psnr_db: float
    within: bool  # the target's tolerance

    def cells(self) -> tuple[str, ...]:
        """As the table has them."""
        runs = (_describe(kernels) for kernels in (self.kernels, self.kernels_here))
        apart = f"{self.psnr_db:.1f}" if self.levels else "equal"
        within = "yes" if self.within else "NO"
        return (self.target, self.precision, *runs, str(self.levels), apart, within)


def main() -> None:
    """Print the table; exit with 1 when pixels are beyond a tolerance or a time is shown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/arm64"), help="kept between runs")
    parser.add_argument("--cpu", default="cortex-a76", help="that qemu has: cortex-a76, max")
    parser.add_argument(
        "--model", type=Path, default=ROOT / "pipeline/presets/teacher_x2.safetensors"
    )
    parser.add_argument("--target", default=_targets_here())
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    python = make_python(folder, asked.cpu)
    work = folder / f"work-{asked.cpu}"  # kept: a run that was interrupted goes on
    _write_images(work / "val")
    with serve(work / "ssh") as config:
        device = ("--device", "ssh://board", "--set", f"device.python={python}")
        device += ("--set", f"device.ssh_config={config}", "--set", f"device.folder={work}/there")
        _call("doctor", *device)
        given = ("--model", str(asked.model), "--target", asked.target)
        _call(
            "run", *given, "--val", str(work / "val"), *_QUICK, *device, "--out", str(work / "run")
        )
    rows = list(_compare(work / "run"))
    _carry_kit(work, python, asked.target.split(",")[0])
    _print(rows, asked.cpu, qemu_version(folder), as_json=asked.json)
    sys.exit(not rows or not all(row.within and row.kind == "emulated" for row in rows))


def _targets_here() -> str:
    """Those with a runtime in the emulated root, of what is installed here."""
    known = [name for name in _TARGETS if name in plugins.names("targets")]
    return ",".join(name for name in known if not find(name).why_not())


def _write_images(folder: Path) -> None:
    """Parts of the repository's sample photos."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((ROOT / "mipkd/samples").rglob("*.webp"))[:2]:
        with Image.open(file) as photo:
            box = (60, 60, 60 + _SIDE + 18, 60 + _SIDE + 2)
            photo.convert("RGB").crop(box).save(folder / f"{file.stem}.png")


def _call(*arguments: str) -> None:
    """The program as a user starts it; what it says goes to the terminal."""
    print("$ mipkd-pipeline", *arguments, flush=True)
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=False)
    # A net on two images passes no gate, and nothing that was emulated is ready to ship.
    if done.returncode not in (0, 6, 7):
        raise SystemExit(f"exit code {done.returncode}: {arguments[0]}")


def _carry_kit(work: Path, python: Path, target: str) -> None:
    """A kit, run by the emulated Python, and its results taken back."""
    kit = work / f"kit-{target}.pyz"
    kit.unlink(missing_ok=True)
    _call("kit", str(work / "run/bundle"), "--target", target, "--out", str(kit))
    print("$", python, kit, flush=True)
    subprocess.run([str(python), str(kit), "-o", str(work / "results.zip")], check=True)
    _call("collect", str(work / "results.zip"), str(work / "run"))


def _compare(run: Path) -> Iterator[Row]:
    """Each model of the bundle: what it made there beside what the same file makes here."""
    bundle = run / "bundle"
    stated = json.loads((run / "report/latest/results.json").read_text())
    found = {(m["target"], m["precision"]): m for m in stated["measurements"] if m["host"]}
    for model in read(bundle).models:
        there = found.get((model.target, model.precision))
        if there is None:
            raise SystemExit(f"{model.name}: it did not run there: see FAILED above")
        if there["latencies"]:
            raise SystemExit(f"{model.name}: timed on an emulated processor")
        yield _compare_model(bundle, model, there["kernels"])


def _compare_model(bundle: Path, model: Model, kernels: dict[str, int]) -> Row:
    target, built = find(model.target), model.built(bundle)
    golden = golden_folder(bundle, model.target, model.precision)
    apart = compare_images(_pairs(bundle, model, golden))
    kernels_here = target.count_kernels(built)
    bound = Replayed(model, kernels=kernels_here).tolerance
    within = apart.levels <= bound.levels and (not apart.levels or apart.psnr_db >= bound.psnr_db)
    return Row(
        model.target,
        model.precision,
        model.kind,
        kernels,
        kernels_here,
        apart.levels,
        apart.psnr_db,
        within,
    )


def _pairs(bundle: Path, model: Model, golden: Path) -> Iterator[tuple[str, ByteArray, ByteArray]]:
    target, built = find(model.target), model.built(bundle)
    with closing(target.open(built)) as session:
        for name in names_in(bundle / GOLDEN / LR):
            lr_HWC = read_rgb(output_file(bundle / GOLDEN / LR, name))
            here = upscale(session, lr_HWC, scale=model.scale, multiple=model.multiple)
            yield name, np.asarray(here), read_rgb(output_file(golden, name))


def _describe(kernels: dict[str, int]) -> str:
    """Such as "int8 (11 of 13)"."""
    if not kernels:
        return "not told"
    runs = executed_precision(kernels)
    return f"{runs} ({kernels[runs]} of {sum(kernels.values())})"


def _print(rows: list[Row], cpu: str, qemu: str, *, as_json: bool) -> None:
    table: list[tuple[str, ...]] = [_HEAD, *(row.cells() for row in rows)]
    wide = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{qemu}, QEMU_CPU={cpu}")
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)))
    if as_json:
        stated: dict[str, Any] = {"qemu": qemu, "cpu": cpu, "rows": [vars(row) for row in rows]}
        print(json.dumps(stated))


if __name__ == "__main__":
    main()
