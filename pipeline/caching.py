"""What of the teacher is kept for which training, and whether that is worth its time and disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mipkd.archs.base import SRNet
from mipkd.core.errors import UsageError
from mipkd.core.records import Directions, Model, Photos, TeacherCache, TestSet
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.cache_fill import cache_bytes, count_lr_pixels
from mipkd.distill.compatibility import check_nets, resolve_positions
from mipkd.distill.forward import pass_shares
from mipkd.distill.settings import DistillConfig
from mipkd.distill.start import check_init
from mipkd.distill.supported_losses import build_supported_losses
from mipkd.losses.base import TeacherPass
from pipeline.run import Run
from pipeline.stage import NotInKey, Ref
from pipeline.stages.distill import DistillInputs, distill
from pipeline.stages.teacher_cache import (
    DirectionsInputs,
    TeacherCacheInputs,
    directions,
    teacher_cache,
)

log = logging.getLogger(__name__)

N = TypeVar("N")  # what a training is named by
Cache = Ref[TeacherCache]


@dataclass(frozen=True)
class Subject:
    """What the trainings of a run share."""

    run: Run
    teacher: Ref[Model]
    student: str | None
    photos: Ref[Photos]
    tests: Ref[TestSet]
    planned_pixels: int | None = None  # LR pixels of photos that are only planned, where known

    @property
    def lr_pixels(self) -> int | None:
        """The LR pixels of all photos, where they are known."""
        return count_lr_pixels(self.photos.record) if self.photos.record else self.planned_pixels


def keep_teacher(on: Subject, trainings: Mapping[N, DistillConfig]) -> dict[N, Cache | None]:
    """The cache of each training; None where the teacher runs at each step, or at none.

    The images of a teacher do not depend on who reads them: they have a cache of their own, that
    more trainings later do not change. It shares its file with a cache of latents.
    """
    uses = [_use(on, config) for config in trainings.values()]
    found = dict[_Latents | None, Cache | None]({None: None})
    for use in uses:
        if use.latents not in found:
            found[use.latents] = _latents(on, [one for one in uses if one.latents == use.latents])
    without = [use for use in uses if not found[use.latents]]
    images = _images(on, without, next(filter(None, found.values()), None))
    return {
        name: found[use.latents] or (images if use.served["image"] else None)
        for name, use in zip(trainings, uses, strict=True)
    }


@dataclass(frozen=True)
class _Latents:
    """At which of the teacher's positions, and how wide; None: as restores its features."""

    positions: tuple[int, ...]
    width: int | None


@dataclass(frozen=True)
class _Use:
    """What a training reads of a teacher's plain forward that a cache can hold."""

    config: DistillConfig
    served: Mapping[TeacherPass, float]  # LR pixels of its patches, by the pass they need
    latents: _Latents | None = None


def _use(on: Subject, config: DistillConfig) -> _Use:
    nothing = _Use(config, {"image": 0.0, "latents": 0.0})
    if not config.cache_gb:
        return nothing
    try:
        teacher = teachers.load_structure(on.teacher.record) if on.teacher.record else None
        chosen = build_supported_losses(config, teacher) if teacher else config.build_losses()
        losses = list(chosen.values())
        check_init(config.init)
        student = _outline(on)
        if teacher and student:
            check_nets(config, student, teacher)
        pixels = config.steps * config.batch * config.patch**2
        served = {name: share * pixels for name, share in pass_shares(losses).items()}
        if not served["latents"]:
            return _Use(config, served)
        if teacher and not teacher.in_parts:  # features of a foreign net want patches of some size
            return _Use(config, served | {"latents": 0.0})
        width = next(loss.reads_width for loss in losses if loss.reads == "latents")
        # None of the teacher's positions while it is only planned.
        at = resolve_positions(config, losses, student, teacher).teacher if student else ()
        return _Use(config, served, _Latents(at, width))
    except UsageError:
        return nothing  # the training itself says what is wrong, and waits for no cache


def _outline(on: Subject) -> SRNet | None:
    """The student without weights; None while its teacher is only planned."""
    if on.teacher.record is None:
        return None
    arch, hyper = students.choose(on.teacher.record, on.student)
    with torch.device("meta"):
        return arch.make(hyper)


def _latents(on: Subject, uses: Sequence[_Use]) -> Cache | None:
    latents = uses[0].latents
    assert latents is not None
    device = uses[0].config.device
    inputs = DirectionsInputs(latents.width, on.teacher, on.photos, latents.positions, device)
    there = on.run.remembers(directions, inputs)
    if _trained_without(on, uses) or not (there or _pays(on, uses, ("image", "latents"))):
        return None
    at = ",".join(map(str, latents.positions))
    found = on.run.step(directions, inputs, label=at)
    return _make_cache(on, uses, found, None, f"latents {at}".strip())


def _images(on: Subject, uses: Sequence[_Use], other: Cache | None) -> Cache | None:
    uses = [use for use in uses if use.served["image"]]
    if not uses:
        return None
    device = uses[0].config.device
    inputs = TeacherCacheInputs(on.teacher, on.photos, None, device, NotInKey(None))
    there = on.run.remembers(teacher_cache, inputs)
    if _trained_without(on, uses) or not (there or other or _pays(on, uses, ("image",))):
        return None
    return _make_cache(on, uses, None, other, "images")


def _trained_without(on: Subject, uses: Sequence[_Use]) -> bool:
    """Whether some have been trained already: they, and what is compared with them, stay so."""
    trainings = (
        DistillInputs(use.config, on.teacher, on.student, on.photos, on.tests) for use in uses
    )
    return any(on.run.remembers(distill, inputs) for inputs in trainings)


def _pays(on: Subject, uses: Sequence[_Use], passes: Sequence[TeacherPass]) -> bool:
    """Whether the teacher would see more pixels in all trainings than the photos have."""
    if (pixels := on.lr_pixels) is None:
        return True
    trained = sum(use.served[name] for use in uses for name in passes)
    if trained < pixels:
        log.info(
            "teacher cache: left out: photos have %.3g million LR pixels, patches of all trainings "
            "%.3g",
            *(pixels / 1e6, trained / 1e6),
        )
    return trained >= pixels


def _make_cache(
    on: Subject,
    uses: Sequence[_Use],
    found: Ref[Directions] | None,
    other: Cache | None,
    label: str,
) -> Cache | None:
    """The cache, if it is small enough."""
    size = _size(on, found)
    most = max(use.config.cache_gb for use in uses)
    device = uses[0].config.device
    inputs = TeacherCacheInputs(on.teacher, on.photos, found, device, NotInKey(other))
    there = on.run.remembers(teacher_cache, inputs)
    if not there and size is not None and size > most * 1e9:
        message = "teacher cache: %s left out: %.2g GB, distill.cache_gb is %g"
        log.info(message, label, size / 1e9, most)
        return None
    note = "" if size is None else f"{size / 1e9:.2g} GB"
    return on.run.step(teacher_cache, inputs, label=label, note=note)


def _size(on: Subject, found: Ref[Directions] | None) -> int | None:
    """Bytes; None while it is only planned."""
    teacher, pixels = on.teacher.record, on.lr_pixels
    if pixels is None or teacher is None or (found and found.record is None):
        return None
    return cache_bytes(pixels, teacher.scale, found.record if found else None)
