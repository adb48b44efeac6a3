"""Where two nets are compared."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from mipkd.archs.base import SRNet, pair_positions
from mipkd.core.errors import UsageError
from mipkd.distill.settings import DistillConfig
from mipkd.losses.base import Loss, Positions


def compared(
    config: DistillConfig, losses: Iterable[Loss], student: SRNet, teacher: SRNet | None
) -> Positions:
    """The positions that were asked for; none where no loss compares features.

    The nets' weights do not matter: they may be on the meta device.

    Raises:
        UsageError: positions that the nets do not have, or not in pairs.
    """
    reads = any(loss.needs_features or loss.reads == "latents" for loss in losses)
    if teacher is None or not reads:
        return Positions((), ())
    wanted = config.positions
    if isinstance(wanted, int):
        return Positions(*pair_positions(student, teacher, wanted))
    _check(wanted.student, "student", student)
    _check(wanted.teacher, "teacher", teacher)
    if len(wanted.student) != len(wanted.teacher):
        raise UsageError(
            f"distill.positions: {len(wanted.student)} of the student, "
            f"{len(wanted.teacher)} of the teacher",
            hint="they are compared in pairs: give as many of each",
        )
    return wanted


def _check(given: tuple[int, ...], role: str, net: SRNet) -> None:
    end = len(net.blocks)
    rising = all(a < b for a, b in pairwise(given))
    if not given or not rising or given[0] < 0 or given[-1] >= end:
        raise UsageError(
            f"distill.positions.{role}: {list(given)}",
            hint=f"known: rising indices of its blocks, 0 to {end - 1}",
        )
