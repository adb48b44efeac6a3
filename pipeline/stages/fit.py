"""Which student is the largest that a target runs within a latency budget.

Weights are random: they do not change what an inference costs.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from mipkd.archs.base import gmacs
from mipkd.core.errors import MipkdError, UsageError
from mipkd.core.records import Built, Model, PatchSet, Told
from mipkd.distill import student as students
from mipkd.export.onnx import export
from pipeline.bench import parcel
from pipeline.bench.latency import BenchSettings, compare
from pipeline.device.device import Device
from pipeline.run import NotInKey, Ref, stage
from targets.base import Target, find

log = logging.getLogger(__name__)

_HOPELESS = 4  # times the budget: those with more arithmetic still are not tried


class FitConfig(BaseModel):
    """The budget of `--student auto`, and the students that are tried."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_budget_ms: float | None = Field(None, gt=0)  # p50 of the fastest precision
    size: tuple[int, int] = (180, 320)  # LR height, width
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


@dataclass(frozen=True)
class Candidate:
    """A student's size and the latency of its fastest precision on one target."""

    spec: str
    gmacs: float
    target: str
    precision: str
    p50_ms: float


@dataclass(frozen=True)
class FitInputs:
    """Students of a teacher, to be timed on a `device`, which told of the target, or here."""

    config: FitConfig
    target: str
    precisions: tuple[str, ...]
    teacher: Ref[Model]
    patches: Ref[PatchSet]
    told: Told | None
    device: NotInKey[Device | None]


@stage(version=2)
def fit(inputs: FitInputs, *, out: Path) -> tuple[Candidate, ...]:
    """Candidates smaller than the teacher, the least first, until one is hopelessly slow."""
    config, target, precisions = inputs.config, inputs.target, inputs.precisions
    teacher, patches = inputs.teacher.value, inputs.patches.value
    told, device = inputs.told, inputs.device.value
    chosen = find(target)
    found = []
    for cost, spec in _by_cost(config, teacher):
        folder = out / spec.replace(":", "-")
        arch, hyper = students.choose(teacher, spec)
        torch.manual_seed(0)
        folder.mkdir()
        graph = export(
            arch.make(hyper).eval(), out=folder, metadata={}, role="student", family=arch.name
        )
        timed, builts = {}, []
        for precision in precisions:
            try:
                calibration = patches if precision == "int8" else None
                built = chosen.build(graph, precision, calibration, folder / precision, on=told)
                if device:
                    builts.append(built)
                else:
                    timed[precision] = _p50_s(chosen, built, config.size)
            except MipkdError as error:
                log.warning("%s %s %s: %s", target, spec, precision, error.what)
        if device and told and builts:
            timed = _p50s_there(device, told, builts, config.size, folder)
        if timed:
            fastest = min(timed, key=lambda p: timed[p])
            ms = timed[fastest] * 1e3
            log.info("%s on %s: %.2f ms in %s", spec, target, ms, fastest)
            found.append(Candidate(spec, cost, target, fastest, ms))
            if config.latency_budget_ms and ms > _HOPELESS * config.latency_budget_ms:
                break
    return tuple(found)


def largest_within(config: FitConfig, tried: Sequence[Sequence[Candidate]]) -> str:
    """The spec with the most arithmetic that is within the budget on every target.

    Raises:
        UsageError: none is.
    """
    assert config.latency_budget_ms is not None
    slowest: dict[str, Candidate] = {}
    for one in (c for of_target in tried for c in of_target):
        known = slowest.get(one.spec)
        slowest[one.spec] = one if known is None or one.p50_ms > known.p50_ms else known
    everywhere = [
        c for spec, c in slowest.items() if all(spec in {o.spec for o in of} for of in tried)
    ]
    within = [c for c in everywhere if c.p50_ms <= config.latency_budget_ms]
    if not within:
        quickest = min(everywhere, key=lambda c: c.p50_ms, default=None)
        told = f"the quickest, {quickest.spec}, takes {quickest.p50_ms:.3g}" if quickest else "none"
        where = f" on {quickest.target}" if quickest else " could be built"
        raise UsageError(
            f"--latency-budget: no student runs in {config.latency_budget_ms:g} ms at LR "
            f"{config.size[1]}x{config.size[0]}: {told}{' ms' if quickest else ''}{where}",
            hint="raise the budget, or lower the size: --set fit.size=[90,160]",
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


def _p50_s(target: Target, built: Built, size: tuple[int, int]) -> float:
    with closing(target.open(built)) as session:
        settings = _settings(size)
        found = compare({"it": session}, size, settings, multiples={"it": built.multiple})["it"]
    return statistics.median(found.samples_s)


def _p50s_there(
    device: Device, told: Told, builts: Sequence[Built], size: tuple[int, int], folder: Path
) -> dict[str, float]:
    """By precision, on a device."""
    job = folder / "job.zip"
    id = parcel.write_job(job, told.target, builts, (), _settings(size))
    results, _ = parcel.read_results(device.carry_out(job, id, told, folder))
    return {
        built.precision: statistics.median(one.samples_s)
        for built, latencies in zip(builts, results.done.latencies, strict=True)
        for one in latencies
        if one.samples_s
    }


def _settings(size: tuple[int, int]) -> BenchSettings:
    return BenchSettings(sizes=(size,), min_time_s=0.5, max_time_s=5.0, attempts=1)
