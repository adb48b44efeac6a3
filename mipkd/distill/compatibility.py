"""Whether settings, nets and processes fit each other."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from mipkd.archs.base import SRNet, pair_positions
from mipkd.core.errors import UsageError
from mipkd.distill.settings import DistillConfig
from mipkd.losses.base import Loss, Positions


def check_nets(config: DistillConfig, student: SRNet, teacher: SRNet | None) -> None:
    """Refuse nets and patches that do not fit; the nets may be on the meta device.

    Raises:
        UsageError: two scales, or a patch that a net cannot take.
    """
    if teacher is not None and teacher.scale != student.scale:
        raise UsageError(
            f"distill: the student's scale is x{student.scale}, the teacher's x{teacher.scale}",
            hint="they must be of one scale",
        )
    for net in (student, teacher):
        if net is not None and (config.patch % net.multiple or config.patch < net.least):
            at_least = f" of at least {net.least}" if net.least > net.multiple else ""
            raise UsageError(
                f"distill.patch: {config.patch} is not a multiple of {net.multiple}{at_least}, "
                f"as {type(net).__name__} needs"
            )


def check_batch(config: DistillConfig, processes: int) -> None:
    """Refuse a batch that cannot be split.

    Raises:
        UsageError: it is no multiple of processes times parts.
    """
    parts = processes * config.accumulate
    if config.batch % parts:
        raise UsageError(
            f"distill.batch: {config.batch} cannot be shared by {processes} processes in "
            f"{config.accumulate} parts each",
            hint=f"--set distill.batch={-(-config.batch // parts) * parts}",
        )


def resolve_positions(
    config: DistillConfig, losses: Iterable[Loss], student: SRNet, teacher: SRNet | None
) -> Positions:
    """The positions at which features are compared; none if no loss compares features.

    The nets may be on the meta device.

    Raises:
        UsageError: positions that the nets do not have, or not in pairs.
    """
    reads = any(loss.needs_features or loss.reads == "latents" for loss in losses)
    if teacher is None or not reads:
        return Positions((), ())
    wanted = config.positions
    if isinstance(wanted, int):
        return Positions(*pair_positions(student, teacher, wanted))
    _check_positions(wanted.student, "student", student)
    _check_positions(wanted.teacher, "teacher", teacher)
    if len(wanted.student) != len(wanted.teacher):
        raise UsageError(
            f"distill.positions: {len(wanted.student)} of the student, "
            f"{len(wanted.teacher)} of the teacher",
            hint="they are compared in pairs: give as many of each",
        )
    return wanted


def _check_positions(positions: tuple[int, ...], role: str, net: SRNet) -> None:
    end = len(net.blocks)
    rising = all(a < b for a, b in pairwise(positions))
    if not positions or not rising or positions[0] < 0 or positions[-1] >= end:
        raise UsageError(
            f"distill.positions.{role}: {list(positions)}",
            hint=f"known: rising indices of its blocks, 0 to {end - 1}",
        )
