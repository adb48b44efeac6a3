"""Which student is the largest that a target runs within a latency budget.

Weights are random: they do not change what an inference costs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, model_validator

from mipkd.archs.base import gmacs
from mipkd.core.errors import MipkdError, UsageError
from mipkd.core.records import Built, Model, PatchSet, TargetInfo
from mipkd.distill import student as students
from mipkd.export.onnx import export
from pipeline.bench.comparisons import Size
from pipeline.bench.latency import BenchSettings
from pipeline.bench.stats import percentiles
from pipeline.machine.base import Job, Machine, MachineLostError
from pipeline.stage import NotInKey, Ref, stage
from targets.base import BuildRequest, find

log = logging.getLogger(__name__)

_HOPELESS = 4  # times the budget: those with more arithmetic still are not tried


class FitConfig(BaseModel):
    """The students that `--student auto` tries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: tuple[str, ...] = (
        "edge:c16b3",
        "edge:c16b6",
        "edge:c32b4",
        "edge:c32b8",
        "edge:c48b8",
        "edge:c64b10",
        "rlfn:c46b4m48",
        "rlfn:c52b6",
        "edsr:c16b4",
        "edsr:c32b8",
        "edsr:c64b16",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_limits(cls, stated: Any) -> Any:
        for name in ("latency_budget_ms", "size"):
            if isinstance(stated, Mapping) and name in stated:
                option = "--latency-budget" if name != "size" else "--size 320x180"
                raise ValueError(f"{name} is a gate's now; {option}")
        return stated


@dataclass(frozen=True)
class Candidate:
    """A student's size and the latency of its fastest precision on one target."""

    spec: str
    gmacs: float
    target: str
    precision: str
    p90_ms: float


@dataclass(frozen=True)
class Budget:
    """What a gate will ask of the student's latency."""

    ms: float  # p90 of the fastest precision
    size: Size  # LR height, width


@dataclass(frozen=True)
class FitInputs:
    """Students of a teacher, to be timed on a machine."""

    config: FitConfig
    budget: Budget
    info: TargetInfo
    precisions: tuple[str, ...]
    teacher: Ref[Model]
    patches: Ref[PatchSet]
    machine: NotInKey[Machine]


@stage(version=5)
def fit(inputs: FitInputs, *, out: Path) -> tuple[Candidate, ...]:
    """Candidates smaller than the teacher, the least first, until one is hopelessly slow."""
    config, target = inputs.config, inputs.info.target
    found = []
    for cost, spec in _by_cost(config, inputs.teacher.value):
        builts = _build_candidate(inputs, spec, out / spec.replace(":", "-"))
        p90s_s = _time_candidate(inputs.machine.value, inputs.info, builts, inputs.budget.size)
        if p90s_s:
            fastest = min(p90s_s, key=lambda p: p90s_s[p])
            ms = p90s_s[fastest] * 1e3
            log.info("%s on %s: %.2f ms in %s", spec, target, ms, fastest)
            found.append(Candidate(spec, cost, target, fastest, ms))
            if ms > _HOPELESS * inputs.budget.ms:
                break
    return tuple(found)


def largest_within(budget: Budget, tried: Sequence[Sequence[Candidate]]) -> str:
    """The spec with the most arithmetic that is within the budget on every target.

    Raises:
        UsageError: none is.
    """
    slowest: dict[str, Candidate] = {}
    for one in (c for of_target in tried for c in of_target):
        known = slowest.get(one.spec)
        slowest[one.spec] = one if known is None or one.p90_ms > known.p90_ms else known
    everywhere = [
        c for spec, c in slowest.items() if all(spec in {o.spec for o in of} for of in tried)
    ]
    within = [c for c in everywhere if c.p90_ms <= budget.ms]
    if not within:
        quickest = min(everywhere, key=lambda c: c.p90_ms, default=None)
        best = f"the quickest, {quickest.spec}, takes {quickest.p90_ms:.3g}" if quickest else "none"
        where = f" on {quickest.target}" if quickest else " could be built"
        raise UsageError(
            f"--latency-budget: no student has a p90 of {budget.ms:g} ms at LR "
            f"{budget.size[1]}x{budget.size[0]}: {best}{' ms' if quickest else ''}{where}",
            hint="raise the budget, or lower the size: --size 160x90",
        )
    return max(within, key=lambda c: c.gmacs).spec


def _by_cost(config: FitConfig, teacher: Model) -> list[tuple[float, str]]:
    found = []
    for spec in config.candidates:
        arch, hyper = students.choose(teacher, spec)
        with torch.device("meta"):
            cost = gmacs(arch.make(hyper).to_deployed())
        if cost < teacher.gmacs:
            found.append((cost, spec))
    return sorted(found)


def _build_candidate(inputs: FitInputs, spec: str, folder: Path) -> list[Built]:
    """A student in each precision that can be built."""
    folder.mkdir()
    arch, hyper = students.choose(inputs.teacher.value, spec)
    torch.manual_seed(0)
    net = arch.make(hyper).eval()
    graph = export(net, out=folder, metadata={}, role="student", family=arch.name)
    target, builts = find(inputs.info.target), []
    on, sizes = inputs.info, (inputs.budget.size,)
    for precision in inputs.precisions:
        place, patches = folder / precision, inputs.patches.value
        request = BuildRequest(graph, precision, place, patches, on=on, sizes=sizes)
        try:
            builts.append(target.build(request))
        except MipkdError as error:
            log.warning("%s %s %s: %s", target.name, spec, precision, error.what)
    return builts


def _time_candidate(
    machine: Machine, info: TargetInfo, builts: Sequence[Built], size: Size
) -> dict[str, float]:
    """p90 in seconds by precision; when they fail together each is timed alone."""
    if not builts:
        return {}
    settings = BenchSettings(sizes=(size,), min_time_s=0.5, max_time_s=5.0, attempts=1)
    try:
        found = machine.run(Job(info, tuple(builts), settings))
    except MachineLostError:
        raise
    except MipkdError as error:
        if len(builts) == 1:
            log.warning("%s %s: %s", info.target, builts[0].precision, error.what)
            return {}
        alone = [_time_candidate(machine, info, [built], size) for built in builts]
        return {precision: p90_s for one in alone for precision, p90_s in one.items()}
    return {
        built.precision: percentiles(one.samples_s).p90_s.value
        for built, m in zip(builts, found, strict=True)
        for one in m.latencies
        if one.samples_s
    }
