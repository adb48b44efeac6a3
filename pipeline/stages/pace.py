"""Time what a step of each training takes here, before they get equal time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mipkd.core.records import Host, Model, Pace, Photos, TeacherCache
from mipkd.distill import student as students
from mipkd.distill.settings import DistillConfig
from mipkd.distill.step_timing import time_steps
from mipkd.distill.training_task import TrainingTask
from pipeline.run import stage


def _failed(paces: Mapping[str, Pace]) -> bool:
    return any(pace.why_not for pace in paces.values())


@stage(version=1, again=_failed)
def pace(
    config: Mapping[str, DistillConfig],
    teacher: Model,
    spec: str | None,
    photos: Photos,
    caches: Sequence[TeacherCache | None],
    host: Host,
    under: Mapping[str, Any],
    out: Path,
) -> dict[str, Pace]:
    """Seconds that each training's start and steps take, with what is kept of
    the teacher for each; `host` and `under` only make the key."""
    arch, hyper = students.choose(teacher, spec)
    tasks = [TrainingTask(arch.name, hyper, teacher, photos, cache) for cache in caches]
    return time_steps(config, dict(zip(config, tasks, strict=True)))
