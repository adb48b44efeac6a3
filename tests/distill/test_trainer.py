"""Training resumes exactly, stops with a reason, and leaves a plain student."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.errors import StageError, UsageError
from mipkd.core.images import resize_bicubic, write_png
from mipkd.core.records import TeacherCache
from mipkd.distill.batch import Batch
from mipkd.distill.cache_fill import fill_cache
from mipkd.distill.data import load_tests, prepare_photos, prepare_tests
from mipkd.distill.forward import StepForward
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.progress import curves_file
from mipkd.distill.settings import DistillConfig
from mipkd.distill.trainer import TrainingInputs, TrainResult, train
from mipkd.losses.base import TeacherPass

TEACHER = edsr.Hyper(2, channels=10, blocks=3)
STUDENT = edsr.Hyper(2, channels=8, blocks=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(2):
        coarse = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        write_png(folder / f"{index}.png", resize_bicubic(coarse, (72, 88)))
    return folder


def trained(
    photos: Path, out: Path, teacher: bool = True, cached: bool = False, **settings: Any
) -> TrainResult:
    out.mkdir(exist_ok=True)
    store = out.with_name(out.name + "-store")
    store.mkdir(exist_ok=True)
    given: dict[str, Any] = {
        "steps": 12,
        "batch": 2,
        "patch": 16,
        "save_every": 3,
        "validate_every": 6,
    }
    if teacher and "losses" not in settings:
        given |= {"method": "mipkd"}  # the method with most that a resume may lose
    config = DistillConfig(**{**given, **settings})
    torch.manual_seed(0)
    student = edsr.EDSR(STUDENT)
    torch.manual_seed(1)
    taught, pixels = edsr.EDSR(TEACHER), prepare_photos(photos, scale=2, patch=16, out=store)
    cache = TeacherCache(store, "teacher", pixels.sha256, None, 0, 0.0) if cached else None
    if cached:
        fill_cache(taught, pixels, None, store)
    sampler = PatchSampler(pixels, patch=16, batch=config.batch, seed=0, cache=cache)
    inputs = TrainingInputs(config, student, taught if teacher else None, sampler)
    return train(inputs, tests=load_tests(prepare_tests(photos, scale=2, out=store)), out=out)


def same(a: TrainResult, b: TrainResult) -> bool:
    one, other = a.student.state_dict(), b.student.state_dict()
    weights = all(torch.equal(one[k], other[k]) for k in one)
    return weights and a.curves.read_text() == b.curves.read_text()


@pytest.mark.parametrize("at", [3, 7])  # MiPKD's mixture rests from step 6 on
@pytest.mark.parametrize(("method", "cached"), [("mipkd", False), ("logits", True)])
def test_an_interrupted_training_ends_bit_for_bit_as_an_uninterrupted_one(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    cached: bool,
    at: int,
) -> None:
    whole = trained(photos, tmp_path / "whole", method=method, cached=cached)
    batch = PatchSampler.batch

    def interrupted(self: PatchSampler, step: int, wants: TeacherPass = "none") -> Any:
        if step == at and wants != "none":  # not what the helpers start from
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, step, wants)

    with monkeypatch.context() as patched:
        patched.setattr(PatchSampler, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(photos, tmp_path / "parts", method=method, cached=cached)
    rows = curves_file(tmp_path / "parts").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == at + 1  # the step in progress was ended, and kept
    assert same(whole, trained(photos, tmp_path / "parts", method=method, cached=cached))


def test_a_training_without_its_cache_is_another_training(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(photos, tmp_path / "run", method="logits", cached=True)
    with caplog.at_level(logging.WARNING):
        trained(photos, tmp_path / "run", method="logits")
    assert "it belongs to another training" in caplog.text


def test_a_killed_training_goes_on_from_its_last_save(photos: Path, tmp_path: Path) -> None:
    whole = trained(photos, tmp_path / "whole", steps=60)
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path; import test_trainer as t\n"
        "t.trained(Path(sys.argv[2]), Path(sys.argv[3]), steps=60)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(photos)]
    root = Path(__file__).parents[2]
    with subprocess.Popen([*command, str(tmp_path / "parts")], cwd=root) as process:
        while not (tmp_path / "parts/checkpoint-before.pt").exists():
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.01)
        process.kill()
    assert same(whole, trained(photos, tmp_path / "parts", steps=60))


def test_a_corrupt_checkpoint_is_told_and_the_one_before_is_used(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(photos, tmp_path / "run")
    before = whole.curves.read_text()
    (tmp_path / "run/checkpoint.pt").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        again = trained(photos, tmp_path / "run")
    assert "skipping a damaged checkpoint" in caplog.text
    assert again.curves.read_text() == before


def test_a_loss_that_is_not_finite_is_named_with_its_step(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"step \d+: \w+ is (nan|inf)") as caught:
        trained(photos, tmp_path / "run", lr=1e30, precision="fp32", clip_grad_norm=None, warmup=0)
    assert "lower the rate" in caught.value.hint


def test_memory_that_is_too_small_names_a_batch_that_fits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = StepForward.forward

    def limited(self: StepForward, batch: Batch, rows: tuple[int, int]) -> dict[str, torch.Tensor]:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, batch, rows)

    monkeypatch.setattr(StepForward, "forward", limited)
    assert trained(photos, tmp_path / "fits", steps=1).steps == 1
    with pytest.raises(StageError, match="a batch of 8 patches of 16x16 is too large") as caught:
        trained(photos, tmp_path / "run", batch=8)
    assert "this fits: --set distill.batch=2, or about --set distill.patch=8" in caught.value.hint
    assert "--set distill.accumulate=4" in caught.value.hint
    # In parts it is the same step, and fits.
    assert trained(photos, tmp_path / "parts", batch=8, accumulate=4, steps=1).steps == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("method", ["scratch", "mipkd"])
def test_it_trains_and_is_validated_on_a_gpu(photos: Path, tmp_path: Path, method: str) -> None:
    here = trained(photos, tmp_path / "cpu", method=method, device="cpu", precision="fp32")
    there = trained(photos, tmp_path / "gpu", method=method, device="cuda", precision="fp32")
    assert there.psnr_y_db == pytest.approx(here.psnr_y_db, abs=0.01)


def test_a_batch_in_parts_is_the_same_step(photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "logits", "precision": "fp32", "batch": 4}
    curves = []
    for parts in (1, 2):
        ended = trained(photos, tmp_path / str(parts), accumulate=parts, **settings)
        curves.append([json.loads(line) for line in ended.curves.read_text().splitlines()])
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_the_result_has_the_plain_students_keys_and_its_curves_every_term(
    photos: Path, tmp_path: Path
) -> None:
    result = trained(photos, tmp_path / "run")
    assert set(result.student.state_dict()) == set(edsr.EDSR(STUDENT).state_dict())
    rows = [json.loads(line) for line in result.curves.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(13))
    assert {"pixel", "logits", "feature", "block", "lr"} <= set(rows[1])
    assert [row["step"] for row in rows if "psnr_y_db" in row] == [0, 6, 12]
    assert result.pictures
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_without_tensorboard_curves_are_in_metrics_jsonl_and_nothing_is_complained_of(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = trained(photos, tmp_path / "run")
    assert len(result.curves.read_text().splitlines()) == 13
    assert not (tmp_path / "run/tensorboard").exists()
    assert "tensorboard" not in caplog.text


def test_scratch_and_logits_go_through_the_same_trainer(photos: Path, tmp_path: Path) -> None:
    assert trained(photos, tmp_path / "s", teacher=False, method="scratch").losses == ("pixel",)
    assert trained(photos, tmp_path / "l", method="logits").losses == ("pixel", "logits")


def test_a_loss_without_its_teacher_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a teacher"):
        trained(photos, tmp_path / "run", teacher=False, method="mipkd")


def test_the_average_follows_fast_at_first() -> None:
    config = DistillConfig(steps=1000, lr=5e-4, warmup=0.02)
    assert config.rate(0) < config.lr
    assert config.rate(20) == pytest.approx(config.lr, rel=1e-3)
    assert config.rate(999) < 0.02 * config.lr
    paper = DistillConfig(steps=1000, lr=5e-4, schedule="multistep", warmup=0)
    assert paper.rate(300) == pytest.approx(5e-4)
    assert paper.rate(900) == pytest.approx(5e-6)
