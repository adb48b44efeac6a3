"""Choose a student's size."""

from __future__ import annotations

import logging
from typing import Any

import torch

from mipkd.archs.base import Arch, arch_names, gmacs, load_arch
from mipkd.core.errors import UsageError, nearest
from mipkd.core.records import Model
from mipkd.distill.teacher import hyper_of

log = logging.getLogger(__name__)


def choose(teacher: Model, spec: str | None) -> tuple[Arch, Any]:
    """As `find_sizes`, with a warning where the student is no smaller than its teacher.

    Raises:
        UsageError: unknown family or size.
    """
    arch, hyper = find_sizes(teacher, spec)
    with torch.device("meta"):
        cost = gmacs(arch.make(hyper).to_deployed())
    if cost >= teacher.gmacs:
        log.warning(
            "the student (%.1f GMACs at LR 256x256) is no smaller than its teacher (%.1f)",
            cost,
            teacher.gmacs,
        )
    return arch, hyper


def find_sizes(teacher: Model, spec: str | None) -> tuple[Arch, Any]:
    """The family and sizes that `spec` names, like `edsr:c32b8` or `edsr`; None for the paper's
    student, else half the teacher's depth and width.

    Sizes left out are the teacher's, in another family those of the paper's student.

    Raises:
        UsageError: unknown family or size.
    """
    if not spec and teacher.arch not in arch_names():
        raise UsageError(
            f"--student: the teacher is {teacher.arch}, none of the families that a student can be",
            hint=f"--student edsr:c64b16; known: {', '.join(arch_names())}",
        )
    arch, budget = _find_family(spec or teacher.arch, "--student")
    if arch.name == teacher.arch:
        return arch, arch.shrink(hyper_of(arch, teacher), budget)
    return arch, _choose_sizes(arch, budget, teacher.scale)


def choose_without_teacher(spec: str, scale: int) -> tuple[Arch, Any]:
    """The family and sizes that `spec` names; sizes left out are the paper's student's.

    Raises:
        UsageError: unknown family or size.
    """
    arch, budget = _find_family(spec, "--arch")
    return arch, _choose_sizes(arch, budget, scale)


def check_family(spec: str, option: str) -> None:
    """Refuse a family that does not exist or load, before any work.

    Raises:
        UsageError: names the nearest.
    """
    _find_family(spec, option)


def _find_family(spec: str, option: str) -> tuple[Arch, str]:
    name, _, budget = spec.partition(":")
    if name not in arch_names():
        raise UsageError(f"{option}: unknown family {name!r}", hint=nearest(name, arch_names()))
    return load_arch(name), budget


def _choose_sizes(arch: Arch, budget: str, scale: int) -> Any:
    paper = arch.paper(scale)
    return arch.shrink(paper, budget) if budget else paper
