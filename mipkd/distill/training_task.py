"""A whole training from records: every process of it opens nets, patches and tests here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mipkd.archs.base import SRNet, load_arch
from mipkd.core.records import Holdout, Model, Photos, TeacherCache, TestSet
from mipkd.distill import teacher as teachers
from mipkd.distill.checkpoint import NEWEST
from mipkd.distill.data import load_holdout, load_tests
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.progress import curves_file
from mipkd.distill.ranks import run_on_all
from mipkd.distill.settings import DistillConfig
from mipkd.distill.start import START, cut_start_patches, initialise, initialise_once
from mipkd.distill.trainer import TrainingInputs, TrainResult, train


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, and on what."""

    arch: str  # the student's family
    hyper: Any  # its sizes
    teacher: Model | None
    photos: Photos
    cache: TeacherCache | None = None  # the teacher runs only for what it does not hold
    leave_out: tuple[int, ...] = ()  # photos that are not trained on, by their index


def open_training(
    config: DistillConfig, task: TrainingTask, folder: Path | None = None
) -> TrainingInputs:
    """The nets, the student with its first weights, and the patches.

    With a `folder` the first weights are stored there, and read from there the next time.

    Raises:
        UsageError: settings that do not fit the nets.
    """
    family = load_arch(task.arch)
    teacher = teachers.load(task.teacher) if task.teacher else None
    torch.manual_seed(config.seed)
    student = family.make(task.hyper)
    patches = partial(_start_patches, config, task, student)
    begin = partial(initialise, student, family, teacher, config.init, patches)
    begun = perf_counter()
    init = initialise_once(student, folder, begin) if folder else begin()
    start_s = perf_counter() - begun
    inherited = None
    if init == "project" and teacher is not None:
        inherited = family.make(task.hyper)
        family.inherit(inherited, teacher)
    sampler = PatchSampler(
        task.photos,
        patch=config.patch,
        batch=config.batch,
        seed=config.seed,
        cache=task.cache,
        leave_out=task.leave_out,
    )
    config = config.with_rate_for(init)
    return TrainingInputs(config, student, teacher, sampler, inherited, start_s)


def _start_patches(config: DistillConfig, task: TrainingTask, student: SRNet) -> Tensor:
    """The patches that a projection is fitted to."""
    assert task.teacher is not None, "nothing is fitted without a teacher"
    return cut_start_patches(
        task.photos,
        most=config.patch,
        multiple=student.multiple,
        gmacs=task.teacher.gmacs,
        seed=config.seed,
        leave_out=task.leave_out,
    )


@run_on_all
def train_task(
    config: DistillConfig,
    task: TrainingTask,
    tests: TestSet | Holdout,
    out: Path,
    until: int | None = None,
) -> TrainResult:
    """Train the student of a task, or its first steps `until` one; continues from a saved step.

    Raises:
        UsageError: settings that do not fit the nets or each other.
        StageError: a loss is not finite, the disk is full, or another process of it stopped.
        KeyboardInterrupt: Ctrl-C, after the last complete step has been saved.
    """
    pairs = load_holdout(tests) if isinstance(tests, Holdout) else load_tests(tests)
    return train(open_training(config, task, out), tests=pairs, out=out, until=until)


def carry_over(before: Path, out: Path) -> None:
    """Let the same training go on in `out` from where it stands in `before`, unless it has begun
    there."""
    files = (START, curves_file(before).name, NEWEST)  # the checkpoint last: with it all are there
    if (out / NEWEST).exists():
        return
    for name in files:
        partial = out / f"{name}.partial"
        shutil.copyfile(before / name, partial)
        partial.replace(out / name)
