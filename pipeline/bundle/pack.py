"""Write the bundle of a finished run, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from mipkd.core import codec, durable
from mipkd.core.errors import MissingError, UsageError
from mipkd.core.evidence import Evidence
from mipkd.core.measurement import Measurement
from mipkd.core.names import model_folder
from mipkd.core.precision import executed_precision
from mipkd.core.records import Built
from mipkd.core.texts import write_text
from mipkd.export.receptive_field import ReceptiveField, find_receptive_field
from pipeline.bundle import manifest
from pipeline.bundle.card import card
from pipeline.bundle.golden import BundleConfig, copy_golden
from pipeline.bundle.hub import open_model_db
from pipeline.bundle.measurements import write_measurements
from pipeline.bundle.provenance import PROVENANCE, RUN, provenance, run_facts, without_paths
from pipeline.bundle.vapoursynth import make_script
from pipeline.origin import program_version
from pipeline.report.figures import compute_figures
from pipeline.run import as_stage_error
from targets.base import files_of

_FILES = ("README.md", PROVENANCE, RUN, manifest.MANIFEST, manifest.SBOM, manifest.SIGNATURE)
_PARTS = (*_FILES, manifest.CATALOGUE, manifest.SCRIPT, "model", "golden", "quality", "bench")


def pack(evidence: Evidence, config: BundleConfig, out: Path) -> Path:
    """Write the bundle into the folder `out`; an earlier one there is replaced at the end.

    Raises:
        StageError: the disk is full, or a file of the run is gone.
    """
    try:
        with durable.new_folder(out, keep=_was_changed) as partial:
            _fill(evidence, config, partial)
    except OSError as error:
        raise as_stage_error("bundle", error) from error
    return out


def others_in(folder: Path) -> list[str]:
    """Names of files in a bundle's folder that this program did not write.

    Of a bundle whose manifest is damaged, what no bundle has; of what is no bundle, all.
    """
    if not folder.is_dir():
        return ["."] if os.path.lexists(folder) else []
    found = _find_problems(folder)
    if found is None:
        parts = _PARTS if _is_damaged_manifest(folder / manifest.MANIFEST) else ()
        known = {*parts, *durable.LEFT_BY_SYSTEMS}
        return sorted(one.name for one in folder.iterdir() if one.name not in known)
    return [one.file for one in found if one.what == manifest.FOREIGN]


def _was_changed(folder: Path) -> bool:
    """Whether a bundle's folder holds what `pack` did not write."""
    found = _find_problems(folder)
    if found is None:
        return not folder.is_dir() or any(folder.iterdir())
    return any(one.what != manifest.MISSING for one in found)


def _find_problems(folder: Path) -> list[manifest.Problem] | None:
    """What differs from the manifest; None where that cannot be read."""
    try:
        found = manifest.problems(folder, manifest.read(folder))
    except UsageError:
        return None
    return [one for one in found if Path(one.file).name not in durable.LEFT_BY_SYSTEMS]


def _is_damaged_manifest(file: Path) -> bool:
    """Whether it may have been ours: it is there, and says nothing else."""
    try:
        stated = codec.parse_json(file.read_bytes())
    except OSError:
        return False
    except ValueError:
        return True
    return isinstance(stated, dict) and {"schema", "models", "files"} <= stated.keys()


def student_builds(evidence: Evidence) -> list[Built]:
    """The student's models, one of a target and precision."""
    found = {(b.target, b.precision): b for b in evidence.builts if b.role == "student"}
    return list(found.values())


def _fill(evidence: Evidence, config: BundleConfig, out: Path) -> None:
    from pipeline.bundle.sbom import sbom  # CycloneDX takes its time, and few commands write one

    around = find_receptive_field(evidence.graph.file, evidence.graph.multiple)
    models = tuple(_copy_model(built, evidence, around, out) for built in student_builds(evidence))
    golden = copy_golden(evidence.tests, evidence.measurements, config, out)
    write_measurements(evidence.measurements, out)
    pixels = evidence.config.get("build", {}).get("pixels")
    if script := make_script(models, on_bytes=pixels != "float32"):
        write_text(out / manifest.SCRIPT, script)
    files = manifest.list_files(out)
    (out / manifest.SBOM).write_text(sbom(evidence, models, files))
    files[manifest.SBOM] = manifest.describe_file(out, manifest.SBOM)
    stated = provenance(evidence, program_version(), files)
    for name, facts in ((PROVENANCE, stated), (RUN, run_facts(evidence))):
        (out / name).write_text(json.dumps(facts, indent=1, sort_keys=True))
    text = card(evidence, compute_figures(evidence), models, golden[0], config)
    write_text(out / "README.md", text)
    entry = without_paths(open_model_db(evidence, config, files))
    write_text(out / manifest.CATALOGUE, str(entry))
    manifest.write(
        manifest.Manifest(
            schema=manifest.SCHEMA,
            name=evidence.name,
            created=evidence.created,
            program=program_version(),
            scale=evidence.graph.scale,
            multiple=evidence.graph.multiple,
            models=models,
            files=manifest.list_files(out),
        ),
        out,
    )


def _copy_model(
    built: Built, evidence: Evidence, around: ReceptiveField, out: Path
) -> manifest.Model:
    """A model's files, laid into the bundle."""
    home = model_folder(built.target, built.precision)
    parts = files_of(built) if built.file.exists() else []
    if not parts:
        raise MissingError(
            f"bundle: {built.file} is gone", hint="delete the run's folder build/ and run again"
        )
    for part in parts:
        file = out / home / part.relative_to(built.file.parent)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part, file)
    m = _find_measurement(built, evidence)
    return manifest.Model(
        target=built.target,
        precision=built.precision,
        kind=_kind(m),
        file=f"{home}/{built.file.name}",
        size_bytes=built.size_bytes,
        scale=built.scale,
        multiple=built.multiple,
        options=built.options,
        notes=built.notes,
        versions=built.versions,
        margin=around.radius,
        inexact_because=around.inexact_because,
        executes=executed_precision(m.kernels if m else {}) or built.executes,
    )


def _kind(m: Measurement | None) -> manifest.Kind:
    return "not measured" if m is None or m.kind == "reference" else m.kind


def _find_measurement(built: Built, evidence: Evidence) -> Measurement | None:
    wanted = (built.role, built.target, built.precision)
    found = (m for m in evidence.measurements if (m.role, m.target, m.precision) == wanted)
    return next(found, None)
