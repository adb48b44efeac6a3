"""The pace of trainings, timed in turns."""

import logging
from pathlib import Path

import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.records import Model, Photos
from mipkd.core.study import Pace
from mipkd.distill.data import prepare_photos
from mipkd.distill.settings import DistillConfig
from mipkd.distill.step_timing import time_steps
from mipkd.distill.teacher import describe, save
from mipkd.distill.training_task import TrainingTask

USUAL = DistillConfig(method="scratch", init="random", steps=40, batch=2, patch=16, device="cpu")
SMALL = edsr.Hyper(scale=2, channels=8, blocks=1)


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return prepare_photos(None, scale=2, patch=16, out=tmp_path)


@pytest.fixture
def teacher(tmp_path: Path) -> Model:
    torch.manual_seed(0)
    hyper, file = edsr.Hyper(scale=2, channels=32, blocks=8), tmp_path / "teacher.safetensors"
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, file, licence="")
    return describe(edsr.ARCH, hyper, role="teacher", file=file, licence="")


def timed(configs: dict[str, DistillConfig], teacher: Model, photos: Photos) -> dict[str, Pace]:
    return time_steps(configs, dict.fromkeys(configs, TrainingTask("edsr", SMALL, teacher, photos)))


def test_a_training_with_a_teacher_takes_longer(teacher: Model, photos: Photos) -> None:
    taught = USUAL.model_copy(update={"method": "logits"})
    found = timed({"scratch": USUAL, "logits": taught}, teacher, photos)
    assert list(found) == ["scratch", "logits"]
    assert 0 < found["scratch"].step_s < found["logits"].step_s
    assert found["logits"].start_s >= 0


def test_what_cannot_be_timed_says_why_and_stops_no_other(
    teacher: Model, photos: Photos, caplog: pytest.LogCaptureFixture
) -> None:
    wild = USUAL.model_copy(update={"lr": 1e30, "clip_grad_norm": None, "warmup": 0.0})
    bad = USUAL.model_copy(update={"patch": 12, "init": "nowhere.pth"})
    with caplog.at_level(logging.ERROR):
        found = timed({"wild": wild, "bad": bad, "scratch": USUAL}, teacher, photos)
    assert "step" in found["wild"].why_not
    assert "nowhere.pth" in found["bad"].why_not
    assert found["scratch"].step_s > 0
    assert "nowhere.pth" in caplog.text
