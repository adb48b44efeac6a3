"""A student learns from its teacher on LR frames without truth, and is judged by its image."""

from __future__ import annotations

import json
import shutil
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
from pipeline.config import load, packaged
from pipeline.lr_only import LrOnly, find_lr_only

Command = Callable[..., Any]

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
    *("--set", "gates.min_speedup_over_teacher=off", "--set", "limits.seconds=120"),
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
            for folder, image in ((f"{kind}/LR", downscale(hr, SCALE)), (f"{kind}-hr", hr)):
                (home / folder).mkdir(parents=True, exist_ok=True)
                write_png(home / folder / f"{number}.png", image)
    return home


@pytest.fixture(scope="module")
def taught(given: Path, ended: Command) -> tuple[Path, Any]:
    """The folder of a run on frames alone, and what it said."""
    return given / "run", ended("run", *words(given))


def words(given: Path) -> tuple[object, ...]:
    nets = ("--teacher", given / "red.safetensors", "--student", "compact:c8b1", "--lr-only")
    folders = ("--data", given / "frames", "--val", given / "shown", "--out", given / "run")
    steps = ("--set", "distill.steps=100", "--set", "distill.lr=2e-3", "--precision", "fp32")
    return (*nets, *folders, *QUICK, *steps)


@pytest.fixture(scope="module")
def finished_student(given: Path, taught: tuple[Path, Any], ended: Command) -> tuple[Path, Any]:
    """The same of that student, given alone, in INT8."""
    root, _ = taught
    (student,) = root.glob("distill/*/student.safetensors")
    folders = ("--data", given / "frames", "--val", given / "shown", "--out", given / "alone")
    return given / "alone", ended("run", "--model", student, *folders, *QUICK)


def results(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "report/latest/results.json").read_text())
    return found


def find(found: dict[str, Any], *which: str) -> dict[str, Any]:
    named = (m for m in found["measurements"] if (m["role"], m["target"], m["precision"]) == which)
    return next(named)


def test_the_student_follows_its_teacher_and_not_the_photos(
    given: Path, taught: tuple[Path, Any]
) -> None:
    root, said = taught
    assert "off: pixel" in " ".join(said.err.split())
    assert "degraded otherwise, or is misread" in " ".join(said.err.split())
    found = results(root)
    student, hr = find(found, "student", "cpu", "fp32"), found["tests"]["folder"]
    db: dict[str, list[float]] = {"teacher": [], "photo": []}
    for number in range(6):
        image = read_rgb(root / student["outputs"] / f"{number}.png")
        for name, file in (("teacher", root / hr / "hr"), ("photo", given / "shown-hr")):
            db[name].append(psnr_y(image, read_rgb(file / f"{number}.png"), border=SCALE))
    to_teacher, to_photo = (float(np.mean(one)) for one in db.values())
    assert to_teacher == pytest.approx(found["figures"]["compared"]["student"], abs=1e-3)
    assert to_teacher > to_photo + 1
    first, *_ = (root / found["distilled"]["curves"]).read_text().splitlines()
    assert to_teacher > json.loads(first)["psnr_y_db"] + 1
    assert to_teacher > found["figures"]["compared"]["bicubic"] + 1


def test_quality_is_called_what_it_is_and_gates_judge_by_it(taught: tuple[Path, Any]) -> None:
    root, said = taught
    found = results(root)
    assert found["tests"]["against"] == "teacher"
    assert {m["against"] for m in found["measurements"]} == {"teacher"}
    assert set(found["figures"]["compared"]) == {"bicubic", "student"}
    assert find(found, "teacher", "reference", "fp32")["scores"][0]["metrics"]["psnr_y"] > 60
    gates = {gate["name"]: gate for gate in found["verdict"]["gates"]}
    compared = found["figures"]["compared"]
    share = 10 ** ((compared["bicubic"] - compared["student"]) / 10)
    assert gates["loss to the teacher"]["figure"] == pytest.approx(share, rel=1e-3)
    page, card = (root / file for file in ("report/latest/index.html", "bundle/README.md"))
    for text in (said.out, page.read_text(), card.read_text()):
        assert "PSNR-Y to the teacher" in " ".join(text.replace("&#39;", "'").split())


def test_a_student_without_a_teacher_is_held_against_its_own_image(
    finished_student: tuple[Path, Any], ended: Command
) -> None:
    root, said = finished_student
    found = results(root)
    assert found["tests"]["against"] == "student"
    assert set(found["figures"]["compared"]) == {"bicubic"}
    gates = {gate["name"] for gate in found["verdict"]["gates"]}
    assert {"mean drop", "worst drop", "holdout drop"} <= gates
    assert not {"loss to the teacher", "gain over bicubic"} & gates
    assert find(found, "student", "cpu", "int8")["scores"][0]["metrics"]["psnr_y"] > 35
    assert "how good the student is cannot be told" in " ".join(said.out.split())
    assert ended("verify", root / "bundle").code == 0
    checked = ended("check", root / "bundle")
    assert "FAIL" not in checked.out
    assert "images computed again" in checked.out


def test_a_plan_remembers_all_of_it(given: Path, taught: tuple[Path, Any], ended: Command) -> None:
    said = ended("plan", *words(given))
    assert said.code == 0
    assert "nothing to make" in said.out


def test_test_images_may_have_a_truth_and_photos_none_and_the_reverse(given: Path) -> None:
    def of(**asked: Any) -> LrOnly:
        return find_lr_only(load({"teacher": given / "red.safetensors", **asked}))

    pairs, flat = given / "pairs", given / "shown-hr"
    shutil.copytree(given / "shown-hr", pairs / "HR")
    shutil.copytree(given / "shown/LR", pairs / "LR")
    frames = given / "frames"
    assert of(data=frames, val=pairs) == LrOnly(data=True)
    assert of(data=frames, val=pairs, lr_only=True) == LrOnly(data=True)
    assert of(data=frames, val=flat, lr_only="data") == LrOnly(data=True)
    assert of(data=flat, val=frames) == LrOnly(val=True)
    assert of(data=frames, val=frames, lr_only=False) == LrOnly()
    assert of(data=pairs, val=flat) == LrOnly()
    assert of(data=pairs, val=flat, lr_only="data") == LrOnly(data=True)
