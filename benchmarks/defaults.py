"""A finished run's INT8 beside what the same library makes of the same model by its defaults.

`python -m benchmarks.defaults RUN --data PHOTOS [--val SET] [--size 128x128]`

RUN is a run's folder with FP32 and INT8 of `openvino` (NNCF) or `cpu` (ONNX Runtime's
`quantize_static`). The library gets the run's FP32 model and 300 random patches of PHOTOS, nothing
else. Losses are PSNR-Y below FP32 on the run's test images or those of SET, latencies are
interleaved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration import random_patches
from calibration.patches import as_batches
from mipkd.core.images import psnr_y, read_rgb
from mipkd.core.records import Built, PatchSet
from mipkd.distill.data import prepare_photos, prepare_tests
from pipeline.bench.host import describe_host
from pipeline.bench.latency import BenchSettings, compare
from pipeline.bundle import manifest
from targets._images import upscale
from targets.base import Session, find

_COUNT, _SIDE = 300, 64  # patches: as many as NNCF reads; LR pixels
_DEFAULT = "the library's default"
_PACE = BenchSettings(min_time_s=3.0, min_samples=20, max_time_s=60.0)


def main() -> None:
    """Print a row a precision: latency, its ratio to FP32, mean and worst loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of photos")
    parser.add_argument("--val", type=Path, help="another set than the run's")
    parser.add_argument("--size", default="128x128", help="LR width x height")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        found = list(_rows(asked.run, asked.data, asked.val, (height, width), Path(folder)))
    if asked.json:
        print(
            json.dumps({"host": describe_host().cpu, "size": asked.size, "rows": found}, indent=1)
        )
        return
    print("| Target | Model | ms | x of FP32 | Mean loss dB | Worst image dB |")
    print("|---|---|---:|---:|---:|---:|")
    for row in found:
        print(
            f"| {row['target']} | {row['model']} | {row['ms']:.1f} | {row['speedup']:.2f} "
            f"| {row['mean_db']:.3f} | {row['worst_db']:.3f} |"
        )


def _rows(
    run: Path, data: Path, val: Path | None, size: tuple[int, int], folder: Path
) -> Iterator[dict[str, Any]]:
    bundle = run / "bundle"
    models = manifest.read(bundle).models
    scale, multiple = models[0].scale, models[0].multiple
    (folder / "photos").mkdir()
    photos = prepare_photos(data, scale=scale, patch=_SIDE, out=folder / "photos")
    patches = random_patches(photos, count=_COUNT, size=_SIDE, seed=0, out=folder)
    if val:
        tests = prepare_tests(val, scale=scale, out=folder / "tests").folder
    else:
        tests = max(run.glob("tests/*/hr"), key=lambda made: made.stat().st_mtime).parent
    for target, quantise in _BY_DEFAULT.items():
        built = {m.precision: m.built(bundle) for m in models if m.target == target}
        if not {"fp32", "int8"} <= set(built):
            continue
        made = quantise(built["fp32"].file, patches, folder)
        built[_DEFAULT] = replace(built["int8"], file=made)
        yield from _compared(target, built, tests, size=size, scale=scale, multiple=multiple)


def _compared(
    target: str,
    built: Mapping[str, Built],
    tests: Path,
    *,
    size: tuple[int, int],
    scale: int,
    multiple: int,
) -> Iterator[dict[str, Any]]:
    def psnrs(session: Session) -> list[float]:
        return [
            psnr_y(
                upscale(session, read_rgb(lr), scale=scale, multiple=multiple),
                read_rgb(tests / "hr" / lr.name),
                border=scale,
            )
            for lr in sorted((tests / "lr").iterdir())
        ]

    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(closing(find(target).open(one)))
            for name, one in built.items()
        }
        quality = {name: psnrs(session) for name, session in opened.items()}
        timed = compare(opened, size, _PACE, multiples=dict.fromkeys(opened, multiple))
    ms = {name: statistics.median(one.samples_s) * 1e3 for name, one in timed.items()}
    for name in built:
        lost = [a - b for a, b in zip(quality["fp32"], quality[name], strict=True)]
        yield {
            "target": target,
            "model": name,
            "ms": ms[name],
            "speedup": ms["fp32"] / ms[name],
            "mean_db": statistics.fmean(lost),
            "worst_db": max(lost),
        }


def _nncf(model: Path, patches: PatchSet, folder: Path) -> Path:
    import nncf
    import openvino

    made = nncf.quantize(openvino.Core().read_model(model), nncf.Dataset(as_batches(patches)))
    openvino.save_model(made, folder / "default.xml")
    return folder / "default.xml"


def _quantize_static(model: Path, patches: PatchSet, folder: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(as_batches(patches))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._left, None)
            return None if batch is None else {_input_of(model): batch}

    quantize_static(model, folder / "default.onnx", Reader())
    return folder / "default.onnx"


def _input_of(model: Path) -> str:
    import onnx

    return str(onnx.load(model, load_external_data=False).graph.input[0].name)


_BY_DEFAULT: dict[str, Callable[[Path, PatchSet, Path], Path]] = {
    "openvino": _nncf,
    "cpu": _quantize_static,
}

if __name__ == "__main__":
    main()
