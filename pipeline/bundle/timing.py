"""Time a bundle's models on a machine, those of a target interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mipkd.core.errors import MipkdError, MissingError, UsageError, nearest
from mipkd.core.evidence import Failure
from mipkd.core.measurement import Host, Measurement
from pipeline.bench.comparisons import RAN_EMULATED
from pipeline.bench.latency import BenchSettings
from pipeline.bundle.manifest import Manifest, check_models, is_damaged, problems
from pipeline.machine.base import Job, Machine

_SIMULATED = "this machine could only simulate it"


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
    machine: Machine,
) -> Timings:
    """Every model of `targets`, or of all when none is named.

    Raises:
        UsageError: the bundle has no model for a target, or a model's files were changed.
        MipkdError: the machine cannot be reached.
    """
    check_models(manifest)
    known = list(dict.fromkeys(model.target for model in manifest.models))
    for name in targets:
        if name not in known:
            raise UsageError(f"--target: no model for {name!r}", hint=nearest(name, known))
    wrong = problems(bundle, manifest)
    for model in manifest.models:
        if is_damaged(model, wrong):
            what = f"{bundle}: files of {model.target} {model.precision} are not the bundle's"
            raise UsageError(what, hint="see which: mipkd-pipeline verify")
    found: list[Measurement] = []
    failed: list[Failure] = []
    offered = machine.offers(list(dict.fromkeys(targets)) or known)
    for name, info in offered.items():
        models = [model for model in manifest.models if model.target == name]
        try:
            if info.why_not or info.simulated:
                raise MissingError(info.why_not or (RAN_EMULATED if info.emulated else _SIMULATED))
            builts = tuple(model.built(bundle) for model in models)
            found += machine.run(Job(info, builts, settings))
        except Exception as error:  # one target's failure is a row
            why = error.what if isinstance(error, MipkdError) else f"failed: {error}"
            failed += [Failure(name, model.precision, "bench", why) for model in models]
    host = next(iter(offered.values())).host
    return Timings(manifest.name, host, tuple(found), tuple(failed))
