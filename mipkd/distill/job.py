"""A whole training from records: nets, patches and tests opened here, in every process of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mipkd.archs.base import Arch
from mipkd.core import plugins
from mipkd.core.records import Model, Photos, TeacherCache, TestSet
from mipkd.distill import teacher as teachers
from mipkd.distill.data import PatchSampler, load_tests
from mipkd.distill.ranks import together
from mipkd.distill.start import patches_of, remembered, start
from mipkd.distill.trainer import DistillConfig, TrainResult, train


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
    family: Arch = plugins.load("mipkd.archs", arch, "ARCH")
    net = teachers.load(teacher) if teacher else None
    torch.manual_seed(config.seed)
    student = family.make(hyper)

    def begin() -> str:
        return start(
            student,
            family,
            net,
            config.init,
            lambda: patches_of(
                photos, most=config.patch, multiple=student.multiple, seed=config.seed
            ),
        )

    remembered(student, out, begin)
    return train(
        config,
        student=student,
        teacher=net,
        sampler=PatchSampler(
            photos, patch=config.patch, batch=config.batch, seed=config.seed, cache=cache
        ),
        tests=load_tests(tests),
        out=out,
    )
