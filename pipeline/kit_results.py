"""Figures that a kit brought back: kept in the run, laid over its own while the models last."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence, Failure
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built, TestSet
from pipeline.bench.models import name_of
from pipeline.machine.base import Job
from pipeline.machine.kit import ANEW, Kit
from pipeline.machine.remote.job_file import hash_files
from pipeline.run import Run
from pipeline.stages.measure import measure_on

log = logging.getLogger(__name__)

_FOLDER = "collected"


@dataclass(frozen=True)
class Collected:
    """What one device measured for one target."""

    target: str
    job: str
    tests: str  # sha256 of the test set
    models: dict[str, dict[str, str]]  # "student int8" -> file -> sha256
    measurements: tuple[Measurement, ...]


def save_results(results_file: Path, run: Run, evidence: Evidence) -> Collected:
    """Check a kit's results, score its pixels and keep all of it in the run.

    Raises:
        UsageError: changed results, or those of another run's kit.
    """
    machine = Kit(results_file)
    target = machine.info.target
    builts = _find_builts(results_file, machine, evidence)
    home = run.root / _FOLDER / target.replace(":", "-")
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    job = Job(machine.info, builts, machine.asked.settings)
    found = measure_on(machine, job, evidence.tests, partial)
    partial.mkdir(parents=True, exist_ok=True)  # of a target without pixels nothing lies there
    shutil.rmtree(home, ignore_errors=True)
    partial.rename(home)
    record = Collected(
        target=target,
        job=machine.asked.id,
        tests=evidence.tests.sha256,
        models={name_of(built): hash_files(built) for built in builts},
        measurements=tuple(_move_outputs(m, partial, home) for m in found),
    )
    run.save_record(f"{_FOLDER}/{home.name}/record.json", record)
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
        record = _read_record(run, file)
        mine = {name_of(b): b for b in builts if b.target == record.target}
        lasting = [
            replace(m, file=mine[_name(m)].file)
            for m in record.measurements
            if record.tests == tests.sha256
            and _name(m) in mine
            and hash_files(mine[_name(m)]) == record.models[_name(m)]
        ]
        own = _replace(own, lasting)
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


def _read_record(run: Run, file: Path) -> Collected:
    try:
        return run.load_record(file.relative_to(run.root).as_posix(), Collected)
    except ValueError as error:
        raise UsageError(
            f"{file}: damaged", hint=f"delete {file.parent}, and collect its results again"
        ) from error


def _replace(own: tuple[Measurement, ...], theirs: list[Measurement]) -> tuple[Measurement, ...]:
    found = {(m.target, m.role, m.precision): m for m in own}
    return tuple((found | {(m.target, m.role, m.precision): m for m in theirs}).values())


def _find_builts(file: Path, machine: Kit, evidence: Evidence) -> tuple[Built, ...]:
    """The run's models that the kit was made of, in its order."""
    target = machine.info.target
    ours = {name_of(b): b for b in evidence.builts if b.target == target}
    for name in machine.models:
        if name not in ours:
            what = f"{file}: of another run's kit: this run has no {target} {name}"
            raise UsageError(what, hint=ANEW)
    return tuple(ours[name] for name in machine.models)


def _move_outputs(m: Measurement, old: Path, new: Path) -> Measurement:
    return replace(m, outputs=new / m.outputs.relative_to(old)) if m.outputs else m


def _name(m: Measurement) -> str:
    return f"{m.role} {m.precision}"
