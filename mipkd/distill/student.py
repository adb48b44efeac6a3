"""Choose a student's size."""

from __future__ import annotations

import logging
from typing import Any

import torch

from mipkd.archs.base import Arch, gmacs
from mipkd.core import plugins
from mipkd.core.errors import UsageError, nearest
from mipkd.core.records import Model
from mipkd.distill.teacher import hyper_of

log = logging.getLogger(__name__)


def choose(teacher: Model, spec: str | None) -> tuple[Arch, Any]:
    """The student that `spec` names: `edsr:c32b8`, `edsr`, or None for the paper's student,
    else half the teacher's depth and width.

    Within the teacher's family, letters left out are as in the teacher; elsewhere as in the
    paper's student of that family.

    Raises:
        UsageError: unknown family or size.
    """
    if not spec and teacher.arch not in plugins.names("mipkd.archs"):
        raise UsageError(
            f"--student: the teacher is {teacher.arch}, none of the families that a student can be",
            hint=f"--student edsr:c64b16; known: {', '.join(plugins.names('mipkd.archs'))}",
        )
    arch, budget = _family(spec or teacher.arch, "--student")
    if arch.name == teacher.arch:
        hyper = arch.shrink(hyper_of(arch, teacher), budget)
    else:
        hyper = _sized(arch, budget, teacher.scale)
    with torch.device("meta"):
        cost = gmacs(arch.make(hyper).deployed())
    if cost >= teacher.gmacs:
        log.warning(
            "the student (%.1f GMACs at LR 256x256) is no smaller than its teacher (%.1f)",
            cost,
            teacher.gmacs,
        )
    return arch, hyper


def choose_alone(spec: str, scale: int) -> tuple[Arch, Any]:
    """The net that `spec` names, for a training without a teacher: letters left out are as in
    the paper's student of that family.

    Raises:
        UsageError: unknown family or size.
    """
    arch, budget = _family(spec, "--arch")
    return arch, _sized(arch, budget, scale)


def _family(spec: str, option: str) -> tuple[Arch, str]:
    name, _, budget = spec.partition(":")
    known = plugins.names("mipkd.archs")
    if name not in known:
        raise UsageError(f"{option}: unknown family {name!r}", hint=nearest(name, known))
    return plugins.load("mipkd.archs", name, "ARCH"), budget


def _sized(arch: Arch, budget: str, scale: int) -> Any:
    paper = arch.paper(scale)
    return arch.shrink(paper, budget) if budget else paper
