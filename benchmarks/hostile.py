"""Files made to stop or fill the machine, each given to the command that a user would give it to.

    python -m benchmarks.hostile OUT

For each: exit code, seconds, peak memory of all its processes, and what it said. It must be one
`error:` line, exit 2, 3 or 5 (or a row and `verify: FAIL`), under 20 s and 1 GiB, and nothing may
be written elsewhere. Linux alone tells the memory. OUT/hostile.json holds all of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cases"))
import hostile_bundles as bundles
import hostile_checkpoints as checkpoints
import hostile_graphs as graphs
import hostile_images as images
from measured import Measured, measure

MOST_S, MOST_BYTES, CODES = 20, 2**30, (2, 3, 5)
FAIL = 6  # what `verify` says of a bundle, in a row for each model
Words = tuple[object, ...]
PACE = ("--set", "bench.min_time_s=0.1", "--set", "bench.sizes=[[24,24]]")


def good_run(out: Path) -> Path:
    """A run of a good graph, whose bundle is changed."""
    (out / "val").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((128, 128)).save(out / "val" / f"{number}.png")
    words = [
        "run",
        "--model",
        graphs.good_graph(out),
        "--target",
        "cpu",
        "--precision",
        "fp32",
    ]
    found = measure(*words, "--val", out / "val", "--out", out / "run", *PACE, folder=out)
    assert (out / "run" / "bundle" / "manifest.json").is_file(), found.err
    return out / "run"


def list_cases(out: Path, run: Path, work: Path) -> Iterator[tuple[str, Words]]:
    """Name of each case and its command; files are made as they are asked for."""
    files, bundle = out / "files", run / "bundle"
    files.mkdir()
    for make in checkpoints.CHECKPOINTS:
        yield f"doctor {make.__name__}", ("doctor", make(files))
    graph = ("--target", "cpu", "--precision", "fp32", "--out", work / "run")
    for make in graphs.GRAPHS:
        yield f"run {make.__name__}", ("run", "--model", make(files), "--demo-data", *graph)
    for make in images.IMAGES:
        yield f"upscale {make.__name__}", ("upscale", bundle, make(files), "-o", work / "out")
    for make in bundles.RESULTS:
        yield f"collect {make.__name__}", ("collect", make(files), run)
    for name, text in bundles.CONFIGS.items():
        (out / "c.toml").write_text(text)
        yield f"plan {name}", ("plan", "--config", out / "c.toml")
    for name, change in bundles.BUNDLES.items():
        shutil.rmtree(out / "changed", ignore_errors=True)
        shutil.copytree(bundle, out / "changed")
        change(out / "changed")
        if name.startswith("golden"):  # looked at by nothing else
            yield f"verify {name}", ("verify", out / "changed")
        else:
            yield f"bench {name}", ("bench", out / "changed", *PACE)


def problems_of(found: Measured, command: object, work: Path, run: Path) -> list[str]:
    """What is not as it must be."""
    failed = command == "verify" and found.code == FAIL
    outside = [one for one in (run.parent, work) if list(one.rglob("*PWNED*"))]
    checks = {
        f"exit {found.code}": found.code in CODES or failed,
        f"{len(found.complaints)} error lines": len(found.complaints) == 1 or failed,
        "traceback": "Traceback" not in found.err,
        f"{found.seconds:.1f} s": found.seconds < MOST_S,
        f"{found.peak_bytes / 2**20:.0f} MiB": found.peak_bytes < MOST_BYTES,
        "wrote outside": not outside,
    }
    return [name for name, well in checks.items() if not well]


def main(out: Path) -> int:
    """How many cases are not as they must be."""
    out.mkdir(parents=True)
    work, run, rows = out / "work", good_run(out), []
    for name, words in list_cases(out, run, work):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            found = measure(*words, folder=work)
        except subprocess.TimeoutExpired:
            found = Measured(-1, "", "", 60.0, 0)
        wrong = problems_of(found, words[0], work, run)
        said = (found.complaints or found.out.splitlines()[-1:] or [""])[0][:150]
        shown = f"{found.code}  {found.seconds:5.1f} s {found.peak_bytes / 2**20:6.0f} MiB"
        print(f"{'; '.join(wrong) or 'well':<8}  {name:<36} {shown}  {said}", flush=True)
        rows.append({"case": name, "wrong": wrong, **asdict(found)})
        (out / "hostile.json").write_text(json.dumps(rows, indent=1))
    bad = [row for row in rows if row["wrong"]]
    print(f"{len(rows) - len(bad)} of {len(rows)} are as they must be")
    return len(bad)


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1]).resolve()) else 0)
