"""What all parts of a run share: its settings, its folder and the machine that measures."""

from __future__ import annotations

import logging
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
from pipeline.lr_only import LrOnly
from pipeline.machine.base import Machine
from pipeline.run import Run
from targets.base import Feature, find

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """One run: what was asked for, where its steps lie, and what failed so far."""

    config: Config
    run: Run
    machine: Machine  # that measures
    host: Host  # of the machine that runs the pipeline
    targets: tuple[TargetInfo, ...]
    lr_only: LrOnly = field(default_factory=LrOnly)
    failures: list[Failure] = field(default_factory=list)

    def precisions(self, info: TargetInfo) -> tuple[str, ...]:
        """Those asked for that a target offers; all of its own where none was asked for."""
        return precisions_of(self.config, info)

    def plans_int8(self, info: TargetInfo) -> bool:
        """Whether INT8 of a target is planned: its floats are searched, or a student is trained for
        its fixed recipe.

        What a layer costs on another machine is not known here: there INT8 has a fixed recipe.
        """
        features, config = find(info.target).features, self.config
        can_search = Feature.FLOAT_SEARCH in features and info.local
        searched = config.quantize.search and can_search
        return searched or (config.qat.run and Feature.FIXED_INT8 in features)

    def catch(
        self, target: str, precision: str, stage: str, role: str
    ) -> AbstractContextManager[None]:
        """Turn the failure of one model on one target into a row of the report."""
        return record_failure(self.failures, target, precision, stage, role)


def choose_targets(config: Config, machine: Machine) -> tuple[TargetInfo, ...]:
    """The targets asked for, or those of the machine's CPU when none is named.

    Raises:
        UsageError: an unknown target or precision, or precisions that none of them offers.
        MissingError: a target that was asked for cannot run there, or one of its precisions cannot
            be built here, before any work is lost.
    """
    asked = config.precision or ()
    for precision in asked:
        if precision not in PRECISIONS:
            raise UsageError(
                f"--precision: unknown name {precision!r}", hint=nearest(precision, PRECISIONS)
            )
    found = _runnable(config, machine)
    known = dict.fromkeys(name for info in found for name in info.precisions)
    if asked and not known.keys() & set(asked):
        names = ", ".join(info.target for info in found)
        where, _ = _place_of(machine)
        raise UsageError(
            f"--precision: {names}: none of {', '.join(asked)} can be built{where or ' here'}",
            hint=f"known: {', '.join(known)}",
        )
    return found


def _runnable(config: Config, machine: Machine) -> tuple[TargetInfo, ...]:
    """Those named, which must all run there and be built here; else those of the CPU that do."""
    names = tuple(dict.fromkeys(config.target or ()))
    offered = _offers(names or ("cpu", "openvino"), machine)
    lacking = [info for info in offered if info.why_not]
    where, option = _place_of(machine)
    hint = f"see what can run: mipkd-pipeline doctor{option}"
    if names and lacking:
        raise MissingError(f"target {lacking[0].target}{where}: {lacking[0].why_not}", hint=hint)
    unbuilt = {info.target: why for info in offered if (why := _why_not_built(config, info))}
    if names and unbuilt:
        what, cure = next(iter(unbuilt.values()))
        raise MissingError(what, hint=cure)
    usable = tuple(one for one in offered if not one.why_not and one.target not in unbuilt)
    if not usable:
        raise MissingError(f"neither cpu nor openvino can run{where}", hint=hint)
    for what, cure in unbuilt.values():
        log.warning("%s: left out; %s", what, cure)
    return usable


def precisions_of(config: Config, info: TargetInfo) -> tuple[str, ...]:
    """Those asked for that a target offers; all of its own where none was asked for."""
    return tuple(p for p in config.precision or info.precisions if p in info.precisions)


def _why_not_built(config: Config, info: TargetInfo) -> tuple[str, str] | None:
    """Which precision cannot be built here and why, and the cure; None where all can."""
    target = find(info.target)
    for precision in () if info.why_not else precisions_of(config, info):
        if reason := target.why_not_build(precision):
            why, _, cure = reason.partition("; ")
            others = [p for p in info.precisions if not target.why_not_build(p)]
            without = f"; or leave it out: --precision {','.join(others)}" if others else ""
            return f"target {info.target}: {precision} {why}", cure + without
    return None


def _place_of(machine: Machine) -> tuple[str, str]:
    """Where a machine is, in words and as an option; nothing to say of this one."""
    address = machine.address
    return (f" on {address}", f" --device {address}") if address else ("", "")


def _offers(names: Sequence[str], machine: Machine) -> list[TargetInfo]:
    for name in names:
        find(name)  # an unknown one is refused before the machine is asked
    offered = machine.offers(names)
    return [offered[name] for name in names]
