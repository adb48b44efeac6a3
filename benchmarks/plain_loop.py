"""Our training against a plain loop: the same nets, losses and machine.

    python -m benchmarks.plain_loop --teacher edsr:c256b32 --student edsr:c64b32 --scale 4

The plain loop is the usual one of super-resolution trainers: PNG files decoded in workers for
every patch, float32, NCHW in memory, batches moved to the device when they are needed. It has our
step otherwise, shared forwards included, so the ratio is what data and arithmetic bring alone.
Exit code 1 on a GPU below the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.train_step import LEAST_OVER_PLAIN, device_name, wait
from mipkd.core.folders import list_images
from mipkd.core.images import crop_to_multiple, downscale, read_rgb, write_png
from mipkd.core.samples import sample_photos
from mipkd.distill import student as students
from mipkd.distill.batch import Batch
from mipkd.distill.data import prepare_photos
from mipkd.distill.gpu_sampler import choose_sampler
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.train_step import Learner
from mipkd.losses.base import TeacherPass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="edsr:c256b32")
    parser.add_argument("--student", default="edsr:c64b32")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--method", default="mipkd")
    parser.add_argument("--data", type=Path, help="folder of HR photos; default the samples")
    parser.add_argument("--steps", type=int, default=20, help="in a row, of each loop in turn")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    found = measure(asked)
    print(json.dumps(found, indent=1))
    sys.exit(found["device"] != "cpu" and found["ours_over_plain"] < LEAST_OVER_PLAIN)


def measure(asked: argparse.Namespace) -> dict[str, object]:
    """Steps a second of either loop, taking turns."""
    shared = {"method": asked.method, "init": "random", "batch": asked.batch, "patch": asked.patch}
    with tempfile.TemporaryDirectory() as folder:
        ours = _learner(asked, DistillConfig(**shared))
        photos = prepare_photos(asked.data, scale=asked.scale, patch=asked.patch, out=Path(folder))
        near_us = choose_sampler(
            PatchSampler(photos, patch=asked.patch, batch=asked.batch, seed=0), ours.device
        )
        usual = {
            "precision": "fp32",
            "channels_last": False,
            "cuda_graphs": False,
            "compile": False,
        }
        plain = _learner(asked, DistillConfig(**shared, **usual))
        decoded = Decoded(_files(asked, Path(folder) / "plain"), asked)
        rates: dict[str, list[float]] = {"ours": [], "plain": []}
        for number in range(asked.rounds + 1):
            for name, learner, sampler in (("ours", ours, near_us), ("plain", plain, decoded)):
                wait(ours.device)
                start = perf_counter()
                for _ in range(asked.steps):
                    learner.advance(sampler)
                wait(ours.device)
                if number:
                    rates[name].append(asked.steps / (perf_counter() - start))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return {
        "device": device_name(ours.device),
        "torch": torch.__version__,
        "nets": f"{asked.teacher} to {asked.student} x{asked.scale}, {asked.method}",
        "batch": asked.batch,
        "steps_per_s": medians,
        "ours_over_plain": medians["ours"] / medians["plain"],
    }


class Decoded:
    """Batches of a DataLoader whose workers decode a whole PNG pair for each patch."""

    def __init__(self, files: list[tuple[Path, Path]], asked: argparse.Namespace) -> None:
        self._loader = DataLoader(
            _Patches(files, asked.patch, asked.scale),
            batch_size=asked.batch,
            num_workers=min(8, os.cpu_count() or 1),
            persistent_workers=True,
        )
        self._batches = self._forever()

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The next one, whatever the step."""
        return Batch(*next(self._batches))

    def _forever(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self._loader


class _Patches(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, files: list[tuple[Path, Path]], patch: int, scale: int) -> None:
        self.files, self.patch, self.scale = files, patch, scale

    def __len__(self) -> int:
        return 100 * len(self.files)  # a worker starts anew at each end

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(index)
        lr, hr = (read_rgb(file) for file in self.files[index % len(self.files)])
        p, s = self.patch, self.scale
        top, left = (int(rng.integers(side - p + 1)) for side in lr.shape[:2])
        low = lr[top : top + p, left : left + p]
        high = hr[top * s : (top + p) * s, left * s : (left + p) * s]
        if rng.random() < 0.5:
            low, high = low[:, ::-1], high[:, ::-1]
        both = [torch.from_numpy(np.ascontiguousarray(i)).permute(2, 0, 1) for i in (low, high)]
        return both[0].float().div(255).contiguous(), both[1].float().div(255).contiguous()


def _files(asked: argparse.Namespace, out: Path) -> list[tuple[Path, Path]]:
    """Each photo and its LR as PNG; those too small for a patch are left out."""
    found = []
    out.mkdir()
    for file in list_images(asked.data) if asked.data else sample_photos():
        hr = crop_to_multiple(read_rgb(file), asked.scale)
        if min(hr.shape[:2]) < asked.patch * asked.scale:
            continue
        pair = out / f"{len(found)}-lr.png", out / f"{len(found)}-hr.png"
        write_png(pair[0], downscale(hr, asked.scale))
        write_png(pair[1], hr)
        found.append(pair)
    return found


def _learner(asked: argparse.Namespace, config: DistillConfig) -> Learner:
    torch.manual_seed(0)
    student, teacher = (
        arch.make(hyper)
        for arch, hyper in (
            students.choose_without_teacher(spec, asked.scale)
            for spec in (asked.student, asked.teacher)
        )
    )
    return Learner(config, student, teacher)


if __name__ == "__main__":
    main()
