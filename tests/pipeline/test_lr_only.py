"""A student learns from its teacher on LR frames without truth, and is judged by its image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mipkd.archs import edsr
from mipkd.core.images import downscale, psnr_y, read_rgb, write_png
from mipkd.core.samples import sample_photos, sample_tests
from mipkd.distill.teacher import TeacherOptions, hyper_of, identify, save
from pipeline.config import packaged

Command = Callable[..., Any]

STUDENT = ("student", "fp32")
RED = 48.0  # levels that the teacher adds
SCALE = 2
QUICK = (
    *("--target", "cpu", "--precision", "fp32,int8", "--set", "distill.patch=16"),
    *("--set", "distill.batch=4", "--set", "distill.precision=fp32", "--set", "distill.threads=1"),
    *("--set", "calibrate.count=4", "--set", "calibrate.size=16"),
    *("--set", "quantize.photos=4", "--set", "quantize.pages=1", "--set", "quantize.crop=24"),
    *("--set", "quantize.size=[16,16]", "--set", "quantize.tries=1"),
    *("--set", "bench.sizes=[[16,16]]", "--set", "bench.min_time_s=0.02"),
    *("--set", "bench.warmup_s=0.01", "--set", "bench.max_drift=9", "--set", "bench.max_busy=1"),
    *("--set", "gates.min_speedup_over_teacher=off"),
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that makes all redder, and frames of odd sizes with the photos that they show."""
    home = tmp_path_factory.mktemp("given")
    model, net = identify(
        packaged("teacher_x2.safetensors"), role="teacher", options=TeacherOptions()
    )
    last = [one for one in net.modules() if isinstance(one, nn.Conv2d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        last.bias[0] += RED * net.image_range / 255
    save(net, edsr.ARCH, hyper_of(edsr.ARCH, model), home / "red.safetensors", licence="CC0-1.0")
    for kind, photos in (("frames", sample_photos()[:4]), ("shown", sample_tests()[:6])):
        for number, photo in enumerate(photos):
            side = SCALE * (33 + 2 * number)
            hr = np.ascontiguousarray(read_rgb(photo)[:side, : side + 2 * SCALE])
            for part, image in (("HR", hr), ("LR", downscale(hr, SCALE))):
                (home / part / kind).mkdir(parents=True, exist_ok=True)
                write_png(home / part / kind / f"{number}.png", image)
    return home


@pytest.fixture(scope="module")
def taught(given: Path, ended: Command) -> tuple[Path, Any]:
    """The folder of a run on frames alone, and what it said."""
    words = ("--teacher", given / "red.safetensors", "--student", "compact:c8b1", "--lr-only")
    folders = ("--data", given / "LR/frames", "--val", given / "LR/shown", "--out", given / "run")
    steps = ("--set", "distill.steps=120", "--set", "distill.lr=2e-3")
    return given / "run", ended("run", *words, *folders, *steps, *QUICK)


def results(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "report/latest/results.json").read_text())
    return found


def test_the_student_follows_its_teacher_and_not_the_photos(
    given: Path, taught: tuple[Path, Any]
) -> None:
    root, said = taught
    assert "off: pixel" in said.err
    found = results(root)
    (student,) = (m for m in found["measurements"] if (m["role"], m["precision"]) == STUDENT)
    to_teacher, to_photo = [], []
    for number in range(6):
        image = read_rgb(root / student["outputs"] / f"{number}.png")
        photo = read_rgb(given / "HR/shown" / f"{number}.png")
        taught_HWC = read_rgb(root / found["tests"]["folder"] / "hr" / f"{number}.png")
        to_teacher.append(psnr_y(image, taught_HWC, border=SCALE))
        to_photo.append(psnr_y(image, photo, border=SCALE))
    assert np.mean(to_teacher) == pytest.approx(found["figures"]["compared"]["student"], abs=1e-3)
    print(np.mean(to_teacher), np.mean(to_photo), found["figures"]["compared"])
    assert np.mean(to_teacher) > np.mean(to_photo) + 1
    assert 0
