"""Time what a step of each training takes here, before they get equal time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mipkd.core.records import Model, Photos, TeacherCache
from mipkd.core.study import Pace
from mipkd.distill import student as students
from mipkd.distill.settings import DistillConfig
from mipkd.distill.step_timing import time_steps
from mipkd.distill.training_task import TrainingTask
from pipeline.stage import Ref, stage


def _has_failure(paces: Mapping[str, Pace]) -> bool:
    return any(pace.why_not for pace in paces.values())


@dataclass(frozen=True)
class PaceInputs:
    """Trainings of one student, each with the teacher cache that it reads."""

    trainings: Mapping[str, DistillConfig]
    teacher: Ref[Model]
    student: str | None
    photos: Ref[Photos]
    caches: Mapping[str, Ref[TeacherCache] | None]


@stage(version=1, retry_if=_has_failure)
def pace(inputs: PaceInputs, *, out: Path) -> dict[str, Pace]:
    """Seconds that each training's start and steps take."""
    teacher, photos = inputs.teacher.value, inputs.photos.value
    arch, hyper = students.choose(teacher, inputs.student)
    caches = {name: ref.value if ref else None for name, ref in inputs.caches.items()}
    tasks = {
        name: TrainingTask(arch.name, hyper, teacher, photos, caches[name])
        for name in inputs.trainings
    }
    return time_steps(inputs.trainings, tasks)
