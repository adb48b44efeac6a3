"""Time a bundle's models on a machine, those of a target interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mipkd.core.errors import MipkdError, UsageError, nearest
from mipkd.core.records import Host, Latency, TargetInfo
from pipeline.bench.latency import BenchSettings
from pipeline.bundle.manifest import Manifest, Model, damaged, problems
from pipeline.machine.base import Job, Machine


@dataclass(frozen=True)
class Timed:
    """One model's latencies, or why there are none."""

    target: str
    precision: str
    size_bytes: int
    why_not: str = ""
    latencies: tuple[Latency, ...] = ()
    invalid_because: str = ""
    notes: tuple[str, ...] = ()
    conditions: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def invalid(self) -> str:
        """Why any of it should not be believed; "" when all can be."""
        found = [self.invalid_because, *(one.invalid_because for one in self.latencies)]
        return "; ".join(dict.fromkeys(filter(None, found)))


@dataclass(frozen=True)
class Timings:
    """All models of a bundle on one machine."""

    bundle: str  # name of its run
    host: Host
    models: tuple[Timed, ...]


def time_bundle(
    bundle: Path,
    manifest: Manifest,
    targets: Sequence[str],
    settings: BenchSettings,
    machine: Machine,
) -> Timings:
    """Every model of `targets`, or of all when none is named.

    Raises:
        UsageError: the bundle has no model for a target, or a model's files were changed.
        MipkdError: the machine cannot be reached.
    """
    known = list(dict.fromkeys(model.target for model in manifest.models))
    for name in targets:
        if name not in known:
            raise UsageError(f"--target: no model for {name!r}", hint=nearest(name, known))
    wrong = problems(bundle, manifest)
    for model in manifest.models:
        if damaged(model, wrong):
            what = f"{bundle}: files of {model.target} {model.precision} are not the bundle's"
            raise UsageError(what, hint="see which: mipkd-pipeline verify")
    wanted = list(dict.fromkeys(targets)) or known
    offered = machine.offers(wanted)
    found: list[Timed] = []
    for name in wanted:
        models = [model for model in manifest.models if model.target == name]
        found += _time_target(bundle, models, offered[name], settings, machine)
    return Timings(manifest.name, offered[wanted[0]].host, tuple(found))


def _time_target(
    bundle: Path,
    models: Sequence[Model],
    info: TargetInfo,
    settings: BenchSettings,
    machine: Machine,
) -> list[Timed]:
    why_not = info.why_not
    if not why_not and info.simulated:
        why_not = "this machine could only simulate it"
    if not why_not:
        try:
            job = Job(info, tuple(model.built(bundle) for model in models), settings)
            results = machine.run(job)
        except Exception as error:  # one target's failure is a row
            why_not = error.what if isinstance(error, MipkdError) else f"failed: {error}"
    if why_not:
        return [Timed(m.target, m.precision, m.size_bytes, why_not=why_not) for m in models]
    return [
        Timed(
            target=model.target,
            precision=model.precision,
            size_bytes=model.size_bytes,
            latencies=latencies,
            invalid_because=results.invalid_because,
            notes=results.notes,
            conditions=results.conditions,
            versions=info.versions,
        )
        for model, latencies in zip(models, results.latencies, strict=True)
    ]
