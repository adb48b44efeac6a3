"""What all parts of a run share: its settings, its folder and the machine that measures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from mipkd.core.errors import MissingError, UsageError, nearest
from mipkd.core.evidence import Failure
from mipkd.core.measurement import Host
from mipkd.core.precision import PRECISIONS
from mipkd.core.records import TargetInfo
from pipeline.config import Config
from pipeline.failures import record_failure
from pipeline.machine.base import Machine
from pipeline.run import Run
from targets.base import find


@dataclass(frozen=True)
class RunContext:
    """One run: what was asked for, where its steps lie, and what failed so far."""

    config: Config
    run: Run
    machine: Machine  # that measures
    host: Host  # of the machine that runs the pipeline
    targets: tuple[TargetInfo, ...]
    failures: list[Failure] = field(default_factory=list)

    def precisions(self, info: TargetInfo) -> tuple[str, ...]:
        """Those asked for that a target offers; all of its own where none was asked for."""
        return tuple(p for p in self.config.precision or info.precisions if p in info.precisions)

    def catch(
        self, target: str, precision: str, stage: str, role: str
    ) -> AbstractContextManager[None]:
        """Turn the failure of one model on one target into a row of the report."""
        return record_failure(self.failures, target, precision, stage, role)


def choose_targets(config: Config, machine: Machine) -> tuple[TargetInfo, ...]:
    """The targets asked for, or those of the machine's CPU when none is named.

    Raises:
        UsageError: an unknown target or precision, or one that no target offers.
        MissingError: a target that was asked for cannot run there, before any work is lost.
    """
    where, option = _place_of(machine)
    if config.target is None:
        usual = [info for info in _offers(("cpu", "openvino"), machine) if not info.why_not]
        if not usual:
            raise MissingError(
                f"neither cpu nor openvino can run{where}",
                hint=f"see what can: mipkd-pipeline doctor{option}",
            )
        return tuple(usual)
    for precision in config.precision or ():
        if precision not in PRECISIONS:
            raise UsageError(
                f"--precision: unknown name {precision!r}", hint=nearest(precision, PRECISIONS)
            )
    found = _offers(config.target, machine)
    for info in found:
        if info.why_not:
            hint = f"see what can run: mipkd-pipeline doctor{option}"
            raise MissingError(f"target {info.target}{where}: {info.why_not}", hint=hint)
    asked = set(config.precision or found[0].precisions)
    if not any(asked & set(info.precisions) for info in found):
        known = dict.fromkeys(name for info in found for name in info.precisions)
        raise UsageError(
            f"--precision: {', '.join(info.target for info in found)}: none of "
            f"{', '.join(config.precision or ())} can be built{where or ' here'}",
            hint=f"known: {', '.join(known)}",
        )
    return tuple(found)


def _place_of(machine: Machine) -> tuple[str, str]:
    """Where a machine is, in words and as an option; nothing to say of this one."""
    address = machine.address
    return (f" on {address}", f" --device {address}") if address else ("", "")


def _offers(names: Sequence[str], machine: Machine) -> list[TargetInfo]:
    for name in names:
        find(name)  # an unknown one is refused before the machine is asked
    offered = machine.offers(names)
    return [offered[name] for name in names]
