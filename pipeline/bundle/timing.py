"""Time a bundle's models, here or on a device, those of a target interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from mipkd.core.errors import MipkdError, UsageError, nearest
from mipkd.core.measurement import Host, Latency
from mipkd.core.records import Built, Told
from pipeline.bench import parcel
from pipeline.bench.agent import tell
from pipeline.bench.job import Done, time_models
from pipeline.bench.latency import BenchSettings
from pipeline.bundle.manifest import Manifest, Model, damaged, problems
from pipeline.device.device import Device
from targets.base import find


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
    device: Device | None = None,
) -> Timings:
    """Every model of `targets`, or of all when none is named, on `device` or on this machine.

    Raises:
        UsageError: the bundle has no model for a target, or a model's files were changed.
        MipkdError: the device cannot be reached.
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
    told = device.probe(wanted) if device else {name: tell(find(name)) for name in wanted}
    found: list[Timed] = []
    for name in wanted:
        models = [model for model in manifest.models if model.target == name]
        found += _timed(bundle, models, told[name], settings, device)
    return Timings(manifest.name, told[wanted[0]].host, tuple(found))


def _timed(
    bundle: Path,
    models: Sequence[Model],
    told: Told,
    settings: BenchSettings,
    device: Device | None,
) -> list[Timed]:
    """Those of one target."""
    why_not = told.why_not
    if not why_not and told.simulated:
        why_not = "this machine could only simulate it"
    if not why_not:
        builts = [model.built(bundle) for model in models]
        try:
            done = (
                _done_there(device, told, builts, settings)
                if device
                else time_models(find(told.target), builts, settings)
            )
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
            conditions=done.conditions,
            versions=told.versions,
        )
        for model, latencies in zip(models, done.latencies, strict=True)
    ]


def _done_there(
    device: Device, told: Told, builts: Sequence[Built], settings: BenchSettings
) -> Done:
    with TemporaryDirectory() as scratch:
        job = Path(scratch) / "job.zip"
        id = parcel.write_job(job, told.target, builts, (), settings)
        results, _ = parcel.read_results(device.carry_out(job, id, told, Path(scratch)))
    return results.done
