"""A whole training from records: nets, patches and tests opened here, in every process of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
class Opened:
    """What a training works with."""

    config: DistillConfig  # with the rate that suits the start
    student: SRNet
    teacher: SRNet | None
    sampler: PatchSampler
    inherited: SRNet | None  # beside a projected student: what it would have been without


def open_training(
    config: DistillConfig,
    arch: str,
    hyper: Any,
    teacher: Model | None,
    photos: Photos,
    cache: TeacherCache | None,
    folder: Path | None = None,
) -> Opened:
    """The nets, the student with its first weights, and the patches.

    With a `folder` the first weights are kept there, and taken from there the next time.

    Raises:
        UsageError: settings that do not fit the nets.
    """
    family: Arch = plugins.load("mipkd.archs", arch, "ARCH")
    net = teachers.load(teacher) if teacher else None
    torch.manual_seed(config.seed)
    student = family.make(hyper)

    def begin() -> str:
        def patches() -> Tensor:
            assert teacher is not None, "nothing is fitted without a teacher"
            multiple, cost = student.multiple, teacher.gmacs
            return patches_of(
                photos, most=config.patch, multiple=multiple, gmacs=cost, seed=config.seed
            )

        return start(student, family, net, config.init, patches)

    how = remembered(student, folder, begin) if folder else begin()
    inherited = None
    if how == "project" and net is not None:
        inherited = family.make(hyper)
        family.inherit(inherited, net)
    sampler = PatchSampler(
        photos, patch=config.patch, batch=config.batch, seed=config.seed, cache=cache
    )
    return Opened(config.begun(how), student, net, sampler, inherited)


@together
def train_on(
    config: DistillConfig,
    arch: str,
    hyper: Any,
    teacher: Model | None,
    photos: Photos,
    tests: TestSet,
    out: Path,
    cache: TeacherCache | None = None,
) -> TrainResult:
    """The net of that family and those sizes, trained on `photos`; goes on from a saved step.

    With a `cache` the teacher runs only for what that does not hold.

    Raises:
        UsageError: settings that do not fit the nets or each other.
        StageError: a loss is not finite, the disk is full, or another process of it stopped.
        KeyboardInterrupt: Ctrl-C, after the last whole step has been saved.
    """
    nets = open_training(config, arch, hyper, teacher, photos, cache, out)
    return train(
        nets.config,
        student=nets.student,
        teacher=nets.teacher,
        inherited=nets.inherited,
        sampler=nets.sampler,
        tests=load_tests(tests),
        out=out,
    )
