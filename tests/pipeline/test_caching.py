"""Which training takes which cache of the teacher, and what a plan says of it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mipkd.losses
from mipkd.archs import edsr
from mipkd.core.image_sets import hash_folder
from mipkd.core.images import resize_bicubic, write_png
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.teacher import TeacherOptions, save
from pipeline.caching import Subject, keep_teacher
from pipeline.receipts import hash_file
from pipeline.run import Run
from pipeline.stage import Source
from pipeline.stages import prepare
from pipeline.stages.distill import DistillInputs, distill
from pipeline.stages.identify import IdentifyInputs, identify

# A loss that reads latents: the student's mean over its channels against the teacher's.
LATENTS = """
from typing import ClassVar
from mipkd.losses.base import Loss, l1

class MeanOfLatents(Loss):
    needs_features: ClassVar[bool] = True

    @property
    def reads(self):
        return "latents"

    @property
    def reads_width(self):
        return 8

    def __call__(self, seen, helper):
        kept = bool(seen.teacher_latents)  # where its health is probed the teacher runs
        theirs = seen.teacher_latents if kept else seen.teacher_features
        pairs = zip(seen.student_features, theirs, strict=True)
        apart = sum(l1(s.mean(1), z.mean(1)) for s, z in pairs)
        return {"latents" if kept else "live": self.weight * apart}

LOSS = MeanOfLatents
"""

Subjects = Callable[..., Subject]


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subjects:
    """What trainings share, in a run's folder; a dry run plans on what a first one has made."""
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses/mean_of_latents.py").write_text(LATENTS)
    there = [*mipkd.losses.__path__, str(tmp_path / "losses")]
    monkeypatch.setattr(mipkd.losses, "__path__", there)
    torch.manual_seed(0)
    hyper, file = edsr.Hyper(scale=2, channels=12, blocks=4), tmp_path / "t.safetensors"
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, file, licence="")
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for index in range(2):
        coarse = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        write_png(folder / f"{index}.png", resize_bicubic(coarse, (64, 72)))

    def made(dry: bool = False) -> Subject:
        run, images = Run(tmp_path / "run", dry=dry), Source(folder, hash_folder(folder))
        given = Source(file, hash_file(file))
        options = TeacherOptions(image_range=255.0, mean_shift=True, res_scale=1.0)
        teacher = run.step(identify, IdentifyInputs(options, given, "teacher", None))
        photos = run.step(prepare.photos, prepare.PhotosInputs(16, teacher, images))
        tests = run.step(prepare.tests, prepare.TestsInputs(teacher, images))
        return Subject(run, teacher, "edsr:c8b2", photos, tests)

    return made


def config(*losses: dict[str, Any], **settings: Any) -> DistillConfig:
    named = ({"name": "pixel"}, *losses)
    return DistillConfig(losses=named, steps=2, batch=8, patch=16, precision="fp32", **settings)


LOGITS, MEAN = {"name": "logits"}, {"name": "mean_of_latents"}
FITNET = {"name": "fitnet"}


def test_each_training_takes_what_its_losses_read(on: Subjects) -> None:
    caches = keep_teacher(
        on(),
        {
            "scratch": config(),
            "logits": config(LOGITS),
            "latents": config(LOGITS, MEAN),
            "latents at first": config(LOGITS, MEAN | {"until": 0.5}),
            "at others": config(LOGITS, MEAN, positions=1),
            "fitnet": config(LOGITS, FITNET),
            "fitnet at first": config(LOGITS, FITNET | {"until": 0.5}),
            "never": config(LOGITS, cache_gb=0),
        },
    )
    assert {name for name, cache in caches.items() if cache is None} == {
        *("scratch", "fitnet", "never"),
    }
    kept = {name: cache.value for name, cache in caches.items() if cache}
    assert kept["logits"] == kept["fitnet at first"]
    assert kept["logits"].directions is None
    assert kept["latents"] == kept["latents at first"]
    directions = [kept[name].directions for name in ("latents", "at others")]
    # The student has two blocks and the convolution after them, the teacher four.
    assert [d.positions for d in directions if d] == [(0, 2, 4), (4,)]
    assert {d.width for d in directions if d} == {8}
    one, other = (kept[name].folder / "image.f16" for name in ("logits", "latents"))
    assert one.samefile(other)


def test_images_do_not_depend_on_who_else_reads_them(on: Subjects) -> None:
    first = keep_teacher(on(), {"logits": config(LOGITS)})["logits"]
    beside = keep_teacher(on(), {"logits": config(LOGITS), "latents": config(LOGITS, MEAN)})
    assert beside["logits"] == first
    assert beside["latents"] != first


def test_a_student_is_trained_on_latents_and_images_that_are_kept(on: Subjects) -> None:
    subject, asked = on(), config(LOGITS, MEAN)
    cache = keep_teacher(subject, {"": asked})[""]
    assert cache is not None
    on_what = (subject.teacher, subject.student, subject.photos, subject.tests, cache)
    trained = subject.run.step(distill, DistillInputs(asked, *on_what)).value
    assert trained.losses == ("pixel", "logits", "mean_of_latents")
    curves = trained.curves.read_text()
    assert '"latents"' in curves
    assert '"live"' not in curves
    sampler = PatchSampler(subject.photos.value, patch=16, batch=2, seed=0, cache=cache.value)
    assert [z.shape[1] for z in sampler.batch(0, "latents").teacher_latents] == [8, 8, 8]


def test_where_latents_take_too_much_the_images_are_kept(
    on: Subjects, caplog: pytest.LogCaptureFixture
) -> None:
    # 2 photos of 32x36: 55 kB of images, 111 kB of latents.
    asked = config(LOGITS, MEAN | {"until": 0.25}, cache_gb=1e-4)
    with caplog.at_level(logging.INFO):
        cache = keep_teacher(on(), {"": asked})[""]
    assert cache is not None
    assert cache.value.directions is None
    assert cache.value.size_bytes == 2 * 32 * 36 * 4 * 3 * 2
    assert "latents 0,2,4 left out: 0.00017 GB, distill.cache_gb is 0.0001" in caplog.text


def test_a_plan_tells_the_size(on: Subjects) -> None:
    on()
    subject = on(dry=True)
    keep_teacher(subject, {"": config(LOGITS)})
    event = subject.run.events[-1]
    assert (event.stage, event.label, event.note) == ("teacher_cache", "images", "5.5e-05 GB")
    assert not event.remembered


def test_what_a_training_refuses_is_refused_before_the_teacher_runs(on: Subjects) -> None:
    subject = on()
    for bad in ({"init": "projct"}, {"positions": {"student": [9], "teacher": [1]}}):
        asked = config(LOGITS, MEAN, **bad)
        assert keep_teacher(subject, {"": asked})[""] is None
    assert not (subject.run.root / "teacher_cache").exists()
