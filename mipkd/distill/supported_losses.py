"""The losses that a teacher can serve: a foreign one offers less."""

from __future__ import annotations

from mipkd.archs.base import SRNet
from mipkd.core import plugins
from mipkd.core.errors import UsageError
from mipkd.distill.settings import DistillConfig
from mipkd.losses.base import Loss


def build_supported_losses(
    config: DistillConfig, teacher: SRNet | None, *, truth: bool = True
) -> dict[str, Loss]:
    """The losses by name; without truth those that can do without.

    Raises:
        UsageError: one of them needs what the teacher does not offer, or all of them a truth.
    """
    losses = config.build_losses(teacher=teacher is not None, truth=truth)
    for name, loss in losses.items():
        if teacher is not None and loss.restrict_to(teacher) != loss:
            raise UsageError(
                f"distill.losses: {name} needs more than this teacher offers: "
                f"{describe_limit(teacher)}",
                hint="possible: " + ", ".join(list_supported(teacher)),
            )
    return losses


def list_truth_terms(config: DistillConfig) -> list[str]:
    """The terms that are off where there is no truth, such as "zoom_in of dukd"."""
    found = []
    for name, loss in config.build_losses().items():
        terms = loss.truth_terms or ((name,) if loss.needs_truth else ())
        found += [term if term == name else f"{term} of {name}" for term in terms]
    return found


def list_supported(teacher: SRNet) -> list[str]:
    """The losses that `teacher` serves, with the settings that must differ from the defaults."""
    found = []
    for name, kind in plugins.load_all("mipkd.losses", "LOSS", type).items():
        loss: Loss = kind()
        served = loss.restrict_to(teacher)
        if served is not None:
            before = loss.model_dump()
            changed = [f"{k}={v:g}" for k, v in served.model_dump().items() if v != before[k]]
            found.append(f"{name} with {', '.join(changed)}" if changed else name)
    return found


def describe_limit(teacher: SRNet) -> str:
    """What a foreign teacher does not offer."""
    if teacher.blocks:
        return "the teacher's blocks give features but cannot be run one by one"
    return "the teacher shows no blocks of one size (identify.blocks can name them)"
