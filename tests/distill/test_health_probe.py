"""The figures of health tell a distillation that teaches from one that does not."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.health import remark
from mipkd.core.images import resize_bicubic, write_png
from mipkd.distill import student as students
from mipkd.distill.batch import Batch
from mipkd.distill.data import load_tests, prepare_photos, prepare_tests
from mipkd.distill.health_probe import HealthProbe
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.teacher import TeacherOptions, identify
from mipkd.distill.train_step import Learner
from mipkd.distill.trainer import TrainingInputs, train
from mipkd.losses.base import TeacherPass

SHARE = "body_gradient_share/mixture_of_priors"


class Noise:
    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        chance = torch.Generator().manual_seed(step)
        return Batch(*(torch.rand(4, 3, side, side, generator=chance) for side in (8, 16)))


def learner(**settings: Any) -> Learner:
    torch.manual_seed(0)
    student = edsr.EDSR(edsr.Hyper(2, channels=8, blocks=4))
    teacher = edsr.EDSR(edsr.Hyper(2, channels=12, blocks=6))
    fixed: dict[str, Any] = {"steps": 400, "patch": 8, "batch": 4, "device": "cpu"}
    found = Learner(DistillConfig(**fixed, precision="fp32", **settings), student, teacher)
    found.start(Noise())
    return found


def health(taught: Learner) -> HealthProbe:
    return HealthProbe(taught, Noise().batch(0))


def test_mipkd_reconstructs_mixes_blocks_and_teaches_the_body() -> None:
    taught = learner(method="mipkd")
    for _ in range(120):
        taught.advance(Noise())
    figures = health(taught).measure()
    assert figures["reconstruction_error"] <= 0.15
    assert 0.3 <= figures["teacher_share"] <= 0.7
    assert figures[SHARE] >= 0.1
    of_body = [value for name, value in figures.items() if name.startswith("body_gradient_share/")]
    assert sum(of_body) == pytest.approx(1)
    assert len(of_body) == 3


@pytest.mark.slow
def test_from_a_real_teacher_too(assets: Path, tmp_path: Path) -> None:
    file = assets / "weights/mlperf_edsr/edsr_f64b5_x2.pt"
    options = TeacherOptions(image_range=255, mean_shift=False)
    model, teacher = identify(file, role="teacher", options=options)
    arch, hyper = students.choose(model, "edsr:c32b2")
    torch.manual_seed(0)
    student = arch.make(hyper)
    arch.inherit(student, teacher)
    config = DistillConfig(
        steps=400, batch=4, patch=16, lr=2e-3, precision="fp32", device="cpu", method="mipkd"
    )
    photos = prepare_photos(None, scale=2, patch=16, out=tmp_path)
    sampler = PatchSampler(photos, patch=16, batch=4, seed=0)
    taught = Learner(config, student, teacher)
    for _ in range(200):
        taught.advance(sampler)
    figures = HealthProbe(taught, sampler.batch(0)).measure()
    assert figures["reconstruction_error"] <= 0.15
    assert 0.3 <= figures["teacher_share"] <= 0.7
    assert figures[SHARE] >= 0.1


def test_the_control_is_told_to_teach_nothing(caplog: pytest.LogCaptureFixture) -> None:
    taught = learner(method="control")
    for _ in range(60):
        taught.advance(Noise())
    watched = health(taught)
    with caplog.at_level(logging.WARNING):
        figures = watched.measure()
        watched.warn(figures)
        watched.warn(figures)
    assert figures[SHARE] == 0
    assert figures["teacher_share"] == 0
    assert caplog.text.count("gives 0.0% of the gradient on the student's body") == 1
    assert caplog.text.count("no teacher block runs in the mixed path") == 1


def test_a_learned_auto_encoder_that_has_not_learned_is_told() -> None:
    figures = health(learner(method="paper")).measure()
    assert figures["reconstruction_error"] > 0.5
    assert "change the teacher's features by" in remark("reconstruction_error", 0.5)


def test_a_loss_that_rests_has_no_figures() -> None:
    taught = learner(method="mipkd")
    taught.step = 201  # it rests from 200 on
    assert set(health(taught).measure()) == {
        "body_gradient_share/pixel",
        "body_gradient_share/logits",
    }


def test_the_share_of_the_teacher_is_counted_anew_after_it_is_told() -> None:
    taught = learner(method="mipkd")
    watched = health(taught)
    taught.carried = {"student": 80, "teacher": 20}
    assert watched.measure()["teacher_share"] == 0.2
    assert "teacher_share" not in watched.measure()
    taught.carried = {"student": 3, "teacher": 0}  # too few to tell chance from a fault
    assert "teacher_share" not in watched.measure()
    assert taught.carried["student"] == 3


def test_parts_of_the_path_without_blocks_are_not_counted() -> None:
    taught = learner(method="mipkd")
    assert len(taught.positions.teacher) == 3  # the last at the body's end
    for _ in range(10):
        taught.advance(Noise())
    assert sum(taught.carried.values()) == 20


@pytest.mark.parametrize("method", ["mipkd", "paper"])
def test_measuring_changes_nothing_of_the_training(method: str) -> None:
    plain, watched = learner(method=method), learner(method=method)
    figures = health(watched)
    curves: list[list[dict[str, float]]] = [[], []]
    for _ in range(6):
        curves[0].append(plain.advance(Noise()))
        figures.measure()
        curves[1].append(watched.advance(Noise()))
    assert curves[0] == curves[1]
    for name, value in plain.helpers.state_dict().items():
        assert torch.equal(value, watched.helpers.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("reconstruction_error", 0.14, ""),
        ("reconstruction_error", 0.45, "by 45% of their size"),
        ("teacher_share", 0.5, ""),
        ("teacher_share", 0.0, "no teacher block"),
        ("teacher_share", 1.0, "no student block"),
        ("teacher_share", 0.2, "are 20% of the mixed path"),
        ("body_gradient_share/mixture_of_priors", 0.1, ""),
        ("body_gradient_share/mixture_of_priors", 0.002, "gives 0.2% of the gradient"),
        ("body_gradient_share/logits", 0.002, ""),
        ("psnr_y_db", 0.0, ""),
    ],
)
def test_a_bad_figure_is_put_in_words(name: str, value: float, said: str) -> None:
    assert said in remark(name, value)
    assert bool(said) == bool(remark(name, value))


def test_figures_stand_in_the_curves_and_go_on_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    write_png(photos / "0.png", resize_bicubic(coarse, (72, 88)))
    rows = _rows(photos, tmp_path / "run")
    told = [row["step"] for row in rows if SHARE in row]
    assert told == [0, 50, 100]  # it rests from 100 on
    assert [row["step"] for row in rows if "teacher_share" in row] == [50, 100]
    batch = PatchSampler.batch

    def interrupted(self: PatchSampler, step: int, wants: TeacherPass = "none") -> Batch:
        if step == 70 and wants != "none":
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, step, wants)

    with monkeypatch.context() as patched:
        patched.setattr(PatchSampler, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _rows(photos, tmp_path / "parts")
    assert _rows(photos, tmp_path / "parts") == rows


def _rows(photos: Path, out: Path) -> list[dict[str, float]]:
    out.mkdir(exist_ok=True)
    store = out.with_name("store")
    store.mkdir(exist_ok=True)
    config = DistillConfig(
        method="mipkd",
        steps=200,
        batch=2,
        patch=8,
        validate_every=50,
        precision="fp32",
        device="cpu",
    )
    torch.manual_seed(0)
    student = edsr.EDSR(edsr.Hyper(2, channels=8, blocks=4))
    pixels = prepare_photos(photos, scale=2, patch=8, out=store)
    inputs = TrainingInputs(
        config,
        student,
        edsr.EDSR(edsr.Hyper(2, channels=12, blocks=6)),
        PatchSampler(pixels, patch=8, batch=2, seed=0),
    )
    ended = train(inputs, tests=load_tests(prepare_tests(photos, scale=2, out=store)), out=out)
    return [json.loads(line) for line in ended.curves.read_text().splitlines()]
