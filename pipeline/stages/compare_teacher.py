"""Compare a teacher with bicubic before a student learns from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mipkd.core.records import Model
from mipkd.distill import teacher as teachers
from mipkd.distill.degradation import BICUBIC, DegradationConfig
from mipkd.distill.probe import TeacherQuality, choose_photos, measure_quality, read_centres
from pipeline.stage import Ref, Source, stage

_SIZE = 96  # LR pixels a side


@dataclass(frozen=True)
class CompareTeacherInputs:
    """A teacher, and images to try it on, LR made as that of the photos; None: the samples."""

    teacher: Ref[Model]
    images: Source | None
    degradation: DegradationConfig = BICUBIC


@stage(version=1, looks=True)
def compare_teacher(inputs: CompareTeacherInputs, *, out: Path) -> TeacherQuality:
    """PSNR-Y of the teacher and of bicubic on a few images."""
    model = inputs.teacher.value
    if inputs.images:
        degrade = inputs.degradation.for_scale(model.scale)
        images = read_centres(inputs.images.path, scale=model.scale, size=_SIZE, degrade=degrade)
    else:
        images = choose_photos(None, None, scale=model.scale)
    return measure_quality(teachers.load(model), images)
