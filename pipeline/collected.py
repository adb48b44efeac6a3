"""Figures that a kit brought back: kept in the run, laid over its own while the models last."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence, Failure
from mipkd.core.images import read_rgb
from mipkd.core.measurement import BY_KIT, Measurement
from mipkd.core.records import Built, TestSet
from pipeline.bench import parcel
from pipeline.bench.job import name_of
from pipeline.bundle.golden import lr_file
from pipeline.bundle.kit import contents
from pipeline.run import Run
from pipeline.stages.measure import Scored, with_scores
from targets.base import ByteArray

log = logging.getLogger(__name__)

_FOLDER = "collected"
_ANEW = "make the kit anew: mipkd-pipeline kit RUN/bundle --target NAME"


@dataclass(frozen=True)
class Collected:
    """What one device measured for one target."""

    target: str
    job: str
    tests: str  # sha256 of the test set
    models: dict[str, dict[str, str]]  # "student int8" -> file -> sha256
    measurements: tuple[Measurement, ...]


def keep(results_file: Path, run: Run, evidence: Evidence) -> Collected:
    """Check a kit's results, score its pixels and keep all of it in the run.

    Raises:
        UsageError: changed results, or those of another run's kit.
    """
    results, outputs = parcel.read_results(results_file)
    job = _job(results_file, results.job)
    target = job["target"]
    if results.told.target != target:
        raise UsageError(f"{results_file}: for {results.told.target}, its job for {target}")
    if results.told.simulated:
        raise UsageError(f"{results_file}: {target} was only simulated there: nothing is measured")
    builts = _builts(results_file, job, evidence)
    _same_images(results_file, job, evidence.tests)
    if len(results.measurements) != len(builts):
        raise UsageError(f"{results_file}: damaged: not one entry a model", hint=_ANEW)
    home = run.root / _FOLDER / target.replace(":", "-")
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    scored = Scored(evidence.tests, partial)
    _score(results_file, job, builts, outputs, scored)
    found = with_scores(results.measurements, builts, scored, device=BY_KIT)
    shutil.rmtree(home, ignore_errors=True)
    partial.rename(home)
    record = Collected(
        target=target,
        job=results.job,
        tests=evidence.tests.sha256,
        models={name_of(built): contents(built) for built in builts},
        measurements=tuple(_moved(m, partial, home) for m in found),
    )
    run.keep(f"{_FOLDER}/{home.name}/record.json", record)
    return record


def lay_over(
    run: Run,
    own: tuple[Measurement, ...],
    failures: tuple[Failure, ...],
    builts: tuple[Built, ...],
    tests: TestSet,
) -> tuple[tuple[Measurement, ...], tuple[Failure, ...]]:
    """A run's measurements and failures, those of devices in the place of its own.

    Figures of a model that has changed since, or on other test images, are left out.
    """
    for file in sorted((run.root / _FOLDER).glob("*/record.json")):
        record = _record(run, file)
        mine = {name_of(b): b for b in builts if b.target == record.target}
        lasting = [
            replace(m, file=mine[_name(m)].file)
            for m in record.measurements
            if record.tests == tests.sha256
            and _name(m) in mine
            and contents(mine[_name(m)]) == record.models[_name(m)]
        ]
        own = _replaced(own, lasting)
        if mine and len(lasting) < len(record.measurements):
            log.warning(
                "%s: %d of %d figures that a kit brought are of other models or images: left out",
                record.target,
                len(record.measurements) - len(lasting),
                len(record.measurements),
            )
        if lasting:
            failures = tuple(
                f for f in failures if (f.target, f.stage) != (record.target, "measure")
            )
    return own, failures


def _record(run: Run, file: Path) -> Collected:
    try:
        return run.kept(file.relative_to(run.root).as_posix(), Collected)
    except ValueError as error:
        raise UsageError(
            f"{file}: damaged", hint=f"delete {file.parent}, and collect its results again"
        ) from error


def _replaced(own: tuple[Measurement, ...], theirs: list[Measurement]) -> tuple[Measurement, ...]:
    found = {(m.target, m.role, m.precision): m for m in own}
    return tuple((found | {(m.target, m.role, m.precision): m for m in theirs}).values())


def _job(file: Path, id: str) -> dict[str, Any]:
    """What the kit was asked to do; its hash is the job's id."""
    try:
        with zipfile.ZipFile(file) as whole:
            text = whole.read(parcel.JOB)
    except KeyError as error:
        raise UsageError(f"{file}: no results of a kit: no {parcel.JOB}", hint=_ANEW) from error
    if parcel.hash_of(text) != id:
        raise UsageError(f"{file}: {parcel.JOB} in it was changed", hint=_ANEW)
    stated: dict[str, Any] = json.loads(text)
    return stated


def _builts(file: Path, job: Mapping[str, Any], evidence: Evidence) -> list[Built]:
    """The run's models that the job was made of, in its order."""
    of_target = {name_of(b): b for b in evidence.builts if b.target == job["target"]}
    found = []
    for number, model in enumerate(job["models"]):
        name, home = f"{model['role']} {model['precision']}", f"models/{number}/"
        built = of_target.get(name)
        theirs = {
            part.removeprefix(home): sha
            for part, sha in job["files"].items()
            if part.startswith(home)
        }
        if built is None:
            what = f"this run has no {job['target']} {name}"
            raise UsageError(f"{file}: of another run's kit: {what}", hint=_ANEW)
        ours = contents(built)
        if ours != theirs:
            part = next(n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n))
            what = f"{job['target']} {name} differs from this run's: {part}"
            raise UsageError(f"{file}: of another run's kit: {what}", hint=_ANEW)
        found.append(built)
    return found


def _same_images(file: Path, job: Mapping[str, Any], tests: TestSet) -> None:
    for number, name in enumerate(job["images"]):
        ours = name in tests.images and parcel.hash_of_image(read_rgb(lr_file(tests, name)))
        if ours != job["files"][f"images/{number}.npy"]:
            raise UsageError(
                f"{file}: of another run's kit: test image {name} differs from this run's",
                hint=_ANEW,
            )


def _score(
    file: Path,
    job: Mapping[str, Any],
    builts: list[Built],
    outputs: Mapping[tuple[int, int], ByteArray],
    scored: Scored,
) -> None:
    for (model, image), sr_HWC in sorted(outputs.items()):
        try:
            scored.take(builts[model], job["images"][image], sr_HWC)
        except (IndexError, ValueError) as error:
            what = f"output {model}/{image} does not fit its image: {error}"
            raise UsageError(f"{file}: damaged: {what}", hint=_ANEW) from error


def _moved(m: Measurement, old: Path, new: Path) -> Measurement:
    return replace(m, outputs=new / m.outputs.relative_to(old)) if m.outputs else m


def _name(m: Measurement) -> str:
    return f"{m.role} {m.precision}"
