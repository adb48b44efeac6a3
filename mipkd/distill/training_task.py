"""A whole training from records: nets, patches and tests opened here, in every process of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mipkd.archs.base import Arch, SRNet
from mipkd.core import plugins
from mipkd.core.records import Model, Photos, TeacherCache, TestSet
from mipkd.distill import teacher as teachers
from mipkd.distill.data import PatchSampler, load_tests
from mipkd.distill.ranks import together
from mipkd.distill.start import patches_of, remembered, start
from mipkd.distill.trainer import DistillConfig, TrainResult, train


@dataclass(frozen=True)
class Task:
    """What is trained, and on what."""

    arch: str  # the student's family
    hyper: Any  # its sizes
    teacher: Model | None
    photos: Photos
    cache: TeacherCache | None = None  # the teacher runs only for what it does not hold


@dataclass(frozen=True)
class Opened:
    """What a training works with."""

    config: DistillConfig  # with the rate that suits the start
    student: SRNet
    teacher: SRNet | None
    sampler: PatchSampler
    inherited: SRNet | None  # beside a projected student: what it would have been without
    start_s: float  # what its first weights took


def open_training(config: DistillConfig, task: Task, folder: Path | None = None) -> Opened:
    """The nets, the student with its first weights, and the patches.

    With a `folder` the first weights are kept there, and taken from there the next time.

    Raises:
        UsageError: settings that do not fit the nets.
    """
    family: Arch = plugins.load("mipkd.archs", task.arch, "ARCH")
    teacher = teachers.load(task.teacher) if task.teacher else None
    torch.manual_seed(config.seed)
    student = family.make(task.hyper)

    def begin() -> str:
        return start(
            student, family, teacher, config.init, partial(_patches, config, task, student)
        )

    begun = perf_counter()
    how = remembered(student, folder, begin) if folder else begin()
    start_s = perf_counter() - begun
    inherited = None
    if how == "project" and teacher is not None:
        inherited = family.make(task.hyper)
        family.inherit(inherited, teacher)
    sampler = PatchSampler(
        task.photos, patch=config.patch, batch=config.batch, seed=config.seed, cache=task.cache
    )
    return Opened(config.begun(how), student, teacher, sampler, inherited, start_s)


def _patches(config: DistillConfig, task: Task, student: SRNet) -> Tensor:
    """What a projection is fitted on."""
    assert task.teacher is not None, "nothing is fitted without a teacher"
    return patches_of(
        task.photos,
        most=config.patch,
        multiple=student.multiple,
        gmacs=task.teacher.gmacs,
        seed=config.seed,
    )


@together
def train_on(config: DistillConfig, task: Task, tests: TestSet, out: Path) -> TrainResult:
    """The student of a task, trained; goes on from a saved step.

    Raises:
        UsageError: settings that do not fit the nets or each other.
        StageError: a loss is not finite, the disk is full, or another process of it stopped.
        KeyboardInterrupt: Ctrl-C, after the last whole step has been saved.
    """
    opened = open_training(config, task, out)
    return train(
        opened.config,
        student=opened.student,
        teacher=opened.teacher,
        inherited=opened.inherited,
        start_s=opened.start_s,
        sampler=opened.sampler,
        tests=load_tests(tests),
        out=out,
    )
