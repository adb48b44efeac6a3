"""A run's LiteRT models beside somebody else's `.tflite` of the same net: quality and speed.

`python -m benchmarks.rival_tflite RUN RIVAL.tflite --val SET [--scale 2] [--size 128x128]`

The rival takes and gives uint8. Both run on the same runtime, in turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import numpy as np

from mipkd.core.image_sets import find_set
from mipkd.core.images import crop_to_multiple, downscale, psnr_y, read_rgb
from targets._images import upscale
from targets._litert.session import LiteRtSession

_FP32 = "litert-fp32"


def main() -> None:
    """Print each model's loss against the run's FP32 and how many times as fast it is."""
    asked = _read_arguments()
    files = {f.parent.name: f for f in sorted(asked.run.glob("bundle/model/litert-*/*.tflite"))}
    sessions = {name: LiteRtSession(f, {}) for name, f in {**files, "rival": asked.rival}.items()}
    width, height = map(int, asked.size.split("x"))
    losses = _drops(sessions, asked.val, asked.scale)
    medians = _medians(sessions, (height, width), asked.rounds)
    print(f"{'':<14} mean drop dB  worst dB  ms at {asked.size}  x of FP32")
    for name, drops in losses.items():
        mean, worst, ms = statistics.mean(drops), max(drops), medians[name] * 1e3
        ratio = medians[_FP32] / medians[name]
        print(f"{name:<14} {mean:12.3f}  {worst:8.3f}  {ms:10.2f}  {ratio:8.2f}")


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("rival", type=Path)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--size", default="128x128")
    parser.add_argument("--rounds", type=int, default=25)
    return parser.parse_args()


def _drops(
    sessions: Mapping[str, LiteRtSession], folder: Path, scale: int
) -> dict[str, list[float]]:
    """PSNR-Y of each image below the FP32 of the run."""
    scores: dict[str, list[float]] = {name: [] for name in sessions}
    for member in find_set(folder, scale).members:
        hr = crop_to_multiple(read_rgb(member.hr), scale)
        lr = read_rgb(member.lr) if member.lr else downscale(hr, scale)
        for name, session in sessions.items():
            scores[name].append(psnr_y(upscale(session, lr, scale=scale), hr, border=scale))
        for session in sessions.values():
            session.forget_shapes()
    pairs = {name: zip(scores[_FP32], own, strict=True) for name, own in scores.items()}
    return {name: [whole - own for whole, own in both] for name, both in pairs.items()}


def _medians(
    sessions: Mapping[str, LiteRtSession], size: tuple[int, int], rounds: int
) -> dict[str, float]:
    """Seconds of a call, in turns of random order."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    order, levels = random.Random(0), np.random.default_rng(0).integers(0, 256, (1, 3, *size))
    for number in range(rounds + 3):
        for name in order.sample(list(sessions), len(sessions)):
            session = sessions[name]
            image = levels.astype(np.uint8) if session.takes_uint8 else levels / np.float32(255)
            start = perf_counter()
            session.run(image.astype(np.uint8 if session.takes_uint8 else np.float32))
            if number >= 3:
                found[name].append(perf_counter() - start)
    return {name: statistics.median(samples) for name, samples in found.items()}


if __name__ == "__main__":
    main()
