"""What a student takes on a target. Its weights are random: they do not change that."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mipkd.core.errors import MipkdError
from mipkd.core.records import Built, Model, PatchSet, TargetInfo
from mipkd.distill import student as students
from mipkd.export.onnx import export
from pipeline.bench.comparisons import Size
from pipeline.bench.latency import BenchSettings
from pipeline.bench.stats import percentiles
from pipeline.bench.stream import StreamSettings
from pipeline.machine.base import Job, Machine, MachineLostError
from pipeline.stage import NotInKey, Ref, stage
from targets.base import BuildRequest, find

log = logging.getLogger(__name__)


class FitConfig(BaseModel):
    """What `--student auto` tries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: tuple[str, ...] = ()  # students in place of the grid of families and sizes
    nets: int = Field(12, ge=1)  # that are trained at most: those nearest to the budget
    steps: int | None = Field(None, ge=1)  # of all of them together; None: as distill.steps

    @model_validator(mode="before")
    @classmethod
    def _refuse_limits(cls, stated: Any) -> Any:
        for name in ("latency_budget_ms", "size"):
            if isinstance(stated, Mapping) and name in stated:
                option = "--latency-budget" if name != "size" else "--size 320x180"
                raise ValueError(f"{name} is a gate's now; {option}")
        return stated


@dataclass(frozen=True)
class Timed:
    """The latency of a student in one precision."""

    precision: str
    p90_ms: float
    most_ms: float  # upper end of its 95 % interval


@dataclass(frozen=True)
class FitInputs:
    """A student of a teacher, to be timed on a machine at LR `size`."""

    student: str
    size: Size
    info: TargetInfo
    precisions: tuple[str, ...]
    teacher: Ref[Model]
    patches: Ref[PatchSet]
    machine: NotInKey[Machine]


@stage(version=6)
def fit(inputs: FitInputs, *, out: Path) -> tuple[Timed, ...]:
    """The student's latency in each precision that could be built and timed, the fastest first."""
    builts = _build(inputs, out)
    found = _time(inputs.machine.value, inputs.info, builts, inputs.size)
    for one in found:
        took = f"{one.p90_ms:.2f} ms in {one.precision}"
        log.info("%s on %s: p90 %s", inputs.student, inputs.info.target, took)
    return tuple(sorted(found, key=lambda one: one.p90_ms))


def _build(inputs: FitInputs, folder: Path) -> list[Built]:
    """The student in each precision that can be built."""
    arch, hyper = students.find_sizes(inputs.teacher.value, inputs.student)
    torch.manual_seed(0)
    net = arch.make(hyper).eval()
    graph = export(net, out=folder, metadata={}, role="student", family=arch.name)
    target, patches, builts = find(inputs.info.target), inputs.patches.value, []
    for precision in inputs.precisions:
        request = BuildRequest(
            graph, precision, folder / precision, patches, on=inputs.info, sizes=(inputs.size,)
        )
        try:
            builts.append(target.build(request))
        except MipkdError as error:
            log.warning("%s %s %s: %s", target.name, inputs.student, precision, error.what)
    return builts


def _time(machine: Machine, info: TargetInfo, builts: Sequence[Built], size: Size) -> list[Timed]:
    """What each takes; when they fail together each is timed alone."""
    if not builts:
        return []
    settings = BenchSettings(
        sizes=(size,),
        min_time_s=0.5,
        max_time_s=5.0,
        attempts=1,
        stream=StreamSettings(seconds=0),
    )
    try:
        found = machine.run(Job(info, tuple(builts), settings))
    except MachineLostError:
        raise
    except MipkdError as error:
        if len(builts) == 1:
            log.warning("%s %s: %s", info.target, builts[0].precision, error.what)
            return []
        return [one for built in builts for one in _time(machine, info, [built], size)]
    taken = [
        (built.precision, percentiles(one.samples_s).p90_s)
        for built, m in zip(builts, found, strict=True)
        for one in m.latencies
        if one.samples_s
    ]
    return [Timed(precision, 1e3 * s.value, 1e3 * s.high) for precision, s in taken]
