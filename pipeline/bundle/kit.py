"""Make a kit: one file with the device's program and the job of one target."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mipkd.core import durable
from mipkd.core.codec import decode_file
from mipkd.core.errors import UsageError, nearest
from mipkd.core.evidence import Evidence
from mipkd.core.images import read_rgb
from mipkd.core.records import Built
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import Image
from pipeline.bench.pixels import output_file
from pipeline.bundle import manifest
from pipeline.bundle.golden import GOLDEN, LR, names_in
from pipeline.bundle.provenance import PROVENANCE, read_provenance
from pipeline.machine.remote import job_file, kit_program
from pipeline.machine.remote.agent_zip import agent_bytes
from pipeline.machine.remote.job_file import hash_files
from pipeline.run import EVIDENCE, Run, as_stage_error


@dataclass(frozen=True)
class Kit:
    """A kit's file, and what it holds."""

    file: Path
    models: tuple[str, ...]
    images: int
    whole: bool  # with the run's test images, teacher and rivals, not the golden images alone


@dataclass(frozen=True)
class Contents:
    """What a bundle's kit is made of."""

    run: str  # its name
    builts: tuple[Built, ...]
    images: tuple[Image, ...]
    settings: BenchSettings
    whole: bool  # as in `Kit`

    def describe(self, file: Path) -> Kit:
        """The kit that was made of it."""
        names = tuple(f"{built.role} {built.precision}" for built in self.builts)
        return Kit(file, names, len(self.images), self.whole)


def make_kit(bundle: Path, target: str, out: Path) -> Kit:
    """Write the kit of a bundle's models for `target`.

    With the bundle's run around it, teacher, rivals and every test image go along too.

    Raises:
        UsageError: no bundle, a changed one, or it has no model for the target.
        StageError: the file cannot be written.
    """
    if out.is_file() and out.stat().st_size and not is_kit(out):
        raise UsageError(
            f"{out}: is there, and is no kit of this program",
            hint="move it away, or name another file with --out",
        )
    found = gather(bundle, target)
    data = pack_kit(found.run, target, found.builts, found.images, found.settings)
    try:
        durable.write_bytes(out, data)
    except OSError as error:
        raise as_stage_error("kit", error) from error
    return found.describe(out)


def gather(bundle: Path, target: str) -> Contents:
    """The models of a bundle for a target, and the images for them.

    Raises:
        UsageError: no bundle, a changed one, or it has no model for the target.
    """
    stated = manifest.read(bundle)
    wrong = manifest.problems(bundle, stated)
    if wrong:
        raise UsageError(
            f"{bundle}: {wrong[0].file} is {wrong[0].what}", hint="see all: mipkd-pipeline verify"
        )
    manifest.check_models(stated)
    models = [model.built(bundle) for model in stated.models if model.target == target]
    if not models:
        known = {model.target for model in stated.models}
        raise UsageError(f"{bundle}: no model for {target!r}", hint=nearest(target, known))
    run = find_run_around(bundle, models)
    others = [b for b in run.builts if b.target == target and b.role != "student"] if run else []
    builts = (*models, *(b for b in others if b.file.exists()))
    images = tuple(_tests(run) if run else _golden(bundle))
    return Contents(stated.name, builts, images, settings_of(bundle), run is not None)


def kit_name(target: str) -> str:
    """How a target's kit is called."""
    return f"kit-{target}.pyz".replace(":", "-")


def is_kit(file: Path) -> bool:
    """Whether a file is a kit, by what it holds."""
    try:
        with zipfile.ZipFile(file) as packed:
            return kit_program.JOB + job_file.JOB in packed.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def find_run_around(bundle: Path, models: list[Built]) -> Evidence | None:
    """The run that a bundle lies in, if its models are still those of the bundle."""
    try:
        found = Run(bundle.resolve().parent).load_record(EVIDENCE, Evidence)
    except (OSError, ValueError):
        return None
    theirs = {(b.target, b.precision): b for b in found.builts if b.role == "student"}
    for model in models:
        built = theirs.get((model.target, model.precision))
        if not built or not built.file.exists() or hash_files(built) != hash_files(model):
            return None
    return found if all(found.tests.lr_file(n).is_file() for n in _images(found)) else None


def pack_kit(
    run: str, target: str, builts: Sequence[Built], images: Iterable[Image], settings: BenchSettings
) -> bytes:
    """The bytes of a kit of those models and images; `run` is the name of the run they are of."""
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "job.zip"
        job_file.write_job(file, target, builts, settings, images)
        with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as job:
            more = {kit_program.JOB + name: job.read(name) for name in job.namelist()}
    more[kit_program.ABOUT] = json.dumps({"run": run, "target": target}).encode()
    return agent_bytes(more=more, main=kit_program.__name__)


def _tests(run: Evidence) -> Iterator[Image]:
    for name in _images(run):
        yield name, read_rgb(run.tests.lr_file(name))


def _images(run: Evidence) -> tuple[str, ...]:
    return run.tests.images + run.tests.probes


def _golden(bundle: Path) -> Iterator[Image]:
    for name in names_in(bundle / GOLDEN / LR):
        yield name, read_rgb(output_file(bundle / GOLDEN / LR, name))


def settings_of(bundle: Path) -> BenchSettings:
    """How the run measured."""
    stated = read_provenance(bundle).config.get("bench", {})
    return decode_file(BenchSettings, stated, bundle / PROVENANCE)
