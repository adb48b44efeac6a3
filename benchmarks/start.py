"""What a projected start is worth before the first step, and what it takes.

`python -m benchmarks.start TEACHER STUDENT --data PHOTOS --holdout IMAGES`

Mean PSNR-Y over the centre crops of 256x256 of the first images of a folder, which are not among
the photos: bicubic, the student inherited and projected, the teacher. Seconds and memory are of
the projection alone, its patches cut before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from mipkd.archs.base import SRNet
from mipkd.core import memory
from mipkd.core.folders import list_images
from mipkd.core.images import ByteArray, downscale, psnr_y, read_rgb, resize_bicubic
from mipkd.distill import student as students
from mipkd.distill.data import prepare_photos
from mipkd.distill.start import cut_start_patches
from mipkd.distill.teacher import TeacherOptions, identify

_SIDE = 256  # HR pixels; a multiple of every scale but 3, whose crops are 255

Pair = tuple[ByteArray, ByteArray]  # LR, HR


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", help="such as edsr:c32b2")
    parser.add_argument("--data", type=Path, required=True, help="photos to fit on")
    parser.add_argument("--holdout", type=Path, required=True, help="images to score")
    parser.add_argument("--count", type=int, default=24, help="images of the holdout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-range", type=float)
    parser.add_argument("--mean-shift", action=argparse.BooleanOptionalAction)
    asked = parser.parse_args()
    options = TeacherOptions(image_range=asked.image_range, mean_shift=asked.mean_shift)
    model, teacher = identify(asked.teacher, role="teacher", options=options)
    arch, hyper = students.choose(model, asked.student)
    pairs = list(crops(asked.holdout, asked.count, model.scale))
    scores = {"teacher": score(teacher, pairs), "bicubic": score(None, pairs)}
    torch.manual_seed(asked.seed)
    student = arch.make(hyper).eval()
    arch.inherit(student, teacher)
    scores["inherited"] = score(student, pairs)
    with tempfile.TemporaryDirectory() as folder:
        photos = prepare_photos(asked.data, scale=model.scale, patch=48, out=Path(folder))
        sizes = {"most": 48, "multiple": student.multiple}
        lr_NCHW = cut_start_patches(photos, **sizes, gmacs=model.gmacs, seed=asked.seed)
    memory.reset_peak()
    begun = perf_counter()
    arch.project(student, teacher, lr_NCHW)
    seconds, peak = perf_counter() - begun, memory.peak_bytes()
    scores["projected"] = score(student, pairs)
    facts = {"student": asked.student, "patches": list(lr_NCHW.shape), "seed": asked.seed}
    cost = {"seconds": round(seconds, 1), "threads": torch.get_num_threads(), "peak_bytes": peak}
    print(json.dumps(facts | cost | {"psnr_y_db": scores}))


def crops(folder: Path, count: int, scale: int) -> Iterator[Pair]:
    """The centre of each of the first images, with its LR."""
    side = _SIDE // scale * scale
    for file in list_images(folder)[:count]:
        image = read_rgb(file)
        top, left = ((length - side) // 2 for length in image.shape[:2])
        hr = np.ascontiguousarray(image[top : top + side, left : left + side])
        yield downscale(hr, scale), hr


def score(net: SRNet | None, pairs: list[Pair]) -> dict[str, float]:
    """Mean PSNR-Y in dB over the first 8, 12 and over all; of bicubic without a net."""
    found = []
    for lr, hr in pairs:
        image = resize_bicubic(lr, (hr.shape[0], hr.shape[1])) if net is None else upscaled(net, lr)
        found.append(psnr_y(image, hr, border=hr.shape[0] // lr.shape[0]))
    firsts = {str(n): round(float(np.mean(found[:n])), 3) for n in (8, 12) if n < len(found)}
    return firsts | {str(len(found)): round(float(np.mean(found)), 3)}


def upscaled(net: SRNet, lr_HWC: ByteArray) -> ByteArray:
    """What a net makes of an image."""
    lr = torch.from_numpy(lr_HWC).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        sr = net.eval()(lr)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    image: ByteArray = sr.contiguous().numpy()
    return image


if __name__ == "__main__":
    main()
