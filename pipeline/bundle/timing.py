"""Time a bundle's models on this machine, those of a target interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mipkd.core.errors import MipkdError, UsageError, nearest
from mipkd.core.records import Host, Latency
from pipeline.bench.host import describe_host
from pipeline.bench.job import time_models
from pipeline.bench.latency import BenchSettings
from pipeline.bundle.manifest import Manifest, Model, damaged, problems
from targets.base import find


@dataclass(frozen=True)
class Timed:
    """One model's latencies here, or why there are none."""

    target: str
    precision: str
    size_bytes: int
    why_not: str = ""
    latencies: tuple[Latency, ...] = ()
    invalid_because: str = ""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] | None = None

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
    bundle: Path, manifest: Manifest, targets: Sequence[str], settings: BenchSettings
) -> Timings:
    """Every model of `targets`, or of all when none is named.

    Raises:
        UsageError: the bundle has no model for a target, or a model's files were changed.
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
    found: list[Timed] = []
    for name in targets or known:
        found += _timed(bundle, [m for m in manifest.models if m.target == name], settings)
    return Timings(manifest.name, describe_host(), tuple(found))


def _timed(bundle: Path, models: Sequence[Model], settings: BenchSettings) -> list[Timed]:
    """Those of one target."""
    target = find(models[0].target)
    why_not = target.why_not()
    if not why_not and target.simulated:
        why_not = "this machine could only simulate it"
    if not why_not:
        try:
            done = time_models(target, [model.built(bundle) for model in models], settings)
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
            invalid_because=done.invalid_because,
            notes=done.notes,
            versions=target.versions(),
        )
        for model, latencies in zip(models, done.latencies, strict=True)
    ]
