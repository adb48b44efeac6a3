"""What all parts of a run share: its settings, its folder and the machine that measures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from mipkd.core.errors import MissingError, UsageError, nearest
from mipkd.core.records import Failure, Host, Told
from pipeline.bench.agent import tell
from pipeline.config import Config
from pipeline.device.device import Device
from pipeline.failures import record_failure
from pipeline.run import Run
from targets.base import PRECISIONS, find


@dataclass(frozen=True)
class RunContext:
    """One run: what was asked for, where its steps lie, and what failed so far."""

    config: Config
    run: Run
    device: Device | None  # that measures; None: this machine
    host: Host  # this machine
    targets: tuple[Told, ...]
    failures: list[Failure] = field(default_factory=list)

    def precisions(self, told: Told) -> tuple[str, ...]:
        """Those asked for that a target offers; all of its own where none was asked for."""
        return tuple(p for p in self.config.precision or told.precisions if p in told.precisions)

    def catch(
        self, target: str, precision: str, stage: str, role: str
    ) -> AbstractContextManager[None]:
        """Turn the failure of one model on one target into a row of the report."""
        return record_failure(self.failures, target, precision, stage, role)


def choose_targets(config: Config, device: Device | None) -> tuple[Told, ...]:
    """The targets asked for, or those of the machine's CPU when none is named.

    Raises:
        UsageError: an unknown target or precision.
        MissingError: a target that was asked for cannot run there, before any work is lost.
    """
    where = f" on {device.address}" if device else ""
    if config.target is None:
        usual = [told for told in _probe(("cpu", "openvino"), device) if not told.why_not]
        if device and not usual:
            raise MissingError(
                f"neither cpu nor openvino can run{where}",
                hint=f"see what can: mipkd-pipeline doctor --device {device.address}",
            )
        return tuple(usual)
    for precision in config.precision or ():
        if precision not in PRECISIONS:
            raise UsageError(
                f"--precision: unknown name {precision!r}", hint=nearest(precision, PRECISIONS)
            )
    found = _probe(config.target, device)
    for told in found:
        if told.why_not:
            raise MissingError(f"target {told.target}{where}: {told.why_not}")
    return tuple(found)


def _probe(names: Sequence[str], device: Device | None) -> list[Told]:
    """What the machine that will measure says of each target."""
    targets = [find(name) for name in names]
    if not device:
        return [tell(target) for target in targets]
    found = device.probe(names)
    return [found[name] for name in names]
