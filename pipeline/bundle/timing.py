"""Time a bundle's models, here or on a device, those of a target interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mipkd.core.errors import MipkdError, MissingError, UsageError, nearest
from mipkd.core.evidence import Failure
from mipkd.core.measurement import Host, Measurement
from mipkd.core.records import Told
from pipeline.bench import parcel
from pipeline.bench.agent import tell
from pipeline.bench.job import time_models
from pipeline.bench.latency import BenchSettings
from pipeline.bundle.manifest import Manifest, Model, damaged, problems
from pipeline.device.device import Device
from targets.base import find


@dataclass(frozen=True)
class Timings:
    """All models of a bundle on one machine."""

    bundle: str  # name of its run
    host: Host
    measurements: tuple[Measurement, ...]
    failures: tuple[Failure, ...]  # a row for each model that could not be measured


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
    found: list[Measurement] = []
    failed: list[Failure] = []
    for name in wanted:
        models = [model for model in manifest.models if model.target == name]
        try:
            found += _time_models(bundle, models, told[name], settings, device)
        except Exception as error:  # one target's failure is a row
            why = error.what if isinstance(error, MipkdError) else f"failed: {error}"
            failed += [Failure(name, model.precision, "bench", why) for model in models]
    return Timings(manifest.name, told[wanted[0]].host, tuple(found), tuple(failed))


def _time_models(
    bundle: Path,
    models: Sequence[Model],
    told: Told,
    settings: BenchSettings,
    device: Device | None,
) -> tuple[Measurement, ...]:
    """Those of one target.

    Raises:
        MissingError: the machine cannot run it.
    """
    if told.why_not or told.simulated:
        raise MissingError(told.why_not or "this machine could only simulate it")
    builts = [model.built(bundle) for model in models]
    if device is None:
        return time_models(find(told.target), builts, settings)
    with TemporaryDirectory() as scratch:
        job = Path(scratch) / "job.zip"
        id = parcel.write_job(job, told.target, builts, (), settings)
        results, _ = parcel.read_results(device.carry_out(job, id, told, Path(scratch)))
    return results.measurements
