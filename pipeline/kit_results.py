"""Figures that a kit brought back: kept in the run, laid over its own while the models last."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mipkd.core.durable import replace_folder, sync_tree
from mipkd.core.errors import MipkdError, UsageError
from mipkd.core.evidence import Evidence, Failure
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built, TestSet
from pipeline.bench.models import name_of
from pipeline.machine.base import Job
from pipeline.machine.kit import ANEW, Kit
from pipeline.machine.remote.job_file import hash_files
from pipeline.receipts import RECORD
from pipeline.run import Run
from pipeline.stages.measure import measure_on
from pipeline.stages.perceive import add_scores, check_metric, look_at

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


@contextmanager
def read_results(results_file: Path, run: Run, evidence: Evidence) -> Iterator[Collected]:
    """Check a kit's results and score its pixels; inside, these lie beside the run's own, and
    are gone afterwards unless `keep` was called.

    Raises:
        UsageError: changed results, such as cannot be, or those of another run's kit.
    """
    machine = Kit(results_file)
    target = machine.info.target
    builts = _find_builts(results_file, machine, evidence)
    home = _home(run, target)
    partial = home.with_name(f".{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    job = Job(machine.info, builts, machine.asked.settings)
    try:
        partial.mkdir(parents=True)  # of a target without pixels nothing lies there
        found = _perceive(measure_on(machine, job, evidence.tests, partial), evidence)
        yield Collected(
            target=target,
            job=machine.asked.id,
            tests=evidence.tests.sha256,
            models={name_of(built): hash_files(built) for built in builts},
            measurements=found,
        )
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # others are in it
            partial.parent.rmdir()


def keep(brought: Collected, run: Run) -> Collected:
    """Keep in the run what `read_results` gave."""
    home = _home(run, brought.target)
    partial = home.with_name(f".{home.name}.partial")
    moved = tuple(_move_outputs(m, partial, home) for m in brought.measurements)
    record = replace(brought, measurements=moved)
    run.save_record(f"{_FOLDER}/{partial.name}/{RECORD}", record)
    sync_tree(partial)
    replace_folder(home, partial, keep=_has_others)
    return record


def list_kept(run: Run) -> list[Collected]:
    """All that kits brought; what cannot be read is named and left aside."""
    found = []
    for file in sorted((run.root / _FOLDER).glob(f"*/{RECORD}")):
        if file.parent.name.startswith("."):
            continue
        try:
            found.append(run.load_record(file.relative_to(run.root).as_posix(), Collected))
        except (OSError, ValueError) as error:
            log.debug("%s: %s", file, error)
            log.warning("%s: left aside: damaged; collect its results again", file)
    return found


def lay_over(
    collected: Sequence[Collected],
    own: tuple[Measurement, ...],
    failures: tuple[Failure, ...],
    builts: tuple[Built, ...],
    tests: TestSet,
) -> tuple[tuple[Measurement, ...], tuple[Failure, ...]]:
    """A run's measurements and failures, those of devices in the place of its own.

    Figures of a model that has changed since, or on other test images, are left out.
    """
    for record in collected:
        mine = {name_of(b): b for b in builts if b.target == record.target}
        lasting = [
            replace(m, file=mine[_name(m)].file)
            for m in record.measurements
            if record.tests == tests.sha256
            and _name(m) in mine
            and hash_files(mine[_name(m)]) == record.models.get(_name(m))
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


def _home(run: Run, target: str) -> Path:
    return run.root / _FOLDER / target.replace(":", "-")


def _has_others(home: Path) -> bool:
    """Whether others' files are among the pictures and the record."""
    files = (file for file in home.rglob("*") if file.is_file())
    return any(file.name != RECORD and file.suffix != ".png" for file in files)


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


def _perceive(found: tuple[Measurement, ...], evidence: Evidence) -> tuple[Measurement, ...]:
    """The metrics, too, that compare features of a net whose weights the run was given."""
    for name, weights in evidence.config.get("metrics", {}).get("weights", {}).items():
        try:
            check_metric(name, Path(weights), "collect")
            found = add_scores(found, look_at(found, name, Path(weights), evidence.tests))
        except MipkdError as error:  # all else that the kit brought is as good without
            log.warning("%s; %s is left out", error.what, name)
    return found


def _move_outputs(m: Measurement, old: Path, new: Path) -> Measurement:
    return replace(m, outputs=new / m.outputs.relative_to(old)) if m.outputs else m


def _name(m: Measurement) -> str:
    return f"{m.role} {m.precision}"
