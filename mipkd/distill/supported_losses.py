"""The losses that a teacher can serve: one that is not ours offers less."""

from __future__ import annotations

from mipkd.archs.base import SRNet
from mipkd.core import plugins
from mipkd.core.errors import UsageError
from mipkd.distill.settings import DistillConfig
from mipkd.losses.base import Loss


def suited(config: DistillConfig, teacher: SRNet | None) -> dict[str, Loss]:
    """The losses by name.

    Raises:
        UsageError: one of them needs what the teacher does not offer.
    """
    losses = config.chosen(teacher=teacher is not None)
    for name, loss in losses.items():
        if teacher is not None and loss.served_by(teacher) != loss:
            raise UsageError(
                f"distill.losses: {name} asks too much: {lack(teacher)}",
                hint="possible: " + ", ".join(possible(teacher)),
            )
    return losses


def possible(teacher: SRNet) -> list[str]:
    """The losses that `teacher` serves, and with which settings if not with the defaults."""
    found = []
    for name in plugins.names("mipkd.losses"):
        loss: Loss = plugins.load("mipkd.losses", name, "LOSS")()
        if how := _how(name, loss, loss.served_by(teacher)):
            found.append(how)
    return found


def lack(teacher: SRNet) -> str:
    """What a teacher that is not ours does not offer."""
    if teacher.blocks:
        return "the teacher's blocks give features but cannot be run one by one"
    return "the teacher shows no blocks of one size (identify.blocks can name them)"


def _how(name: str, loss: Loss, served: Loss | None) -> str:
    if served is None:
        return ""
    before = loss.model_dump()
    changed = [f"{k}={v:g}" for k, v in served.model_dump().items() if v != before[k]]
    return f"{name} with {', '.join(changed)}" if changed else name
