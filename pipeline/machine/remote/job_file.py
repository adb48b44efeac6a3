"""What travels to a machine and back: a job of models and images, and what came of it.

A job is a folder or the same files in a zip: `job.json`, which lists every other file with its
sha256, `models/N/`, `images/N.npy` (uint8 RGB, HWC). Its id is the hash of `job.json`. Results are
a zip: `results.json`, which lists every other file too, `outputs/M/N.npy`, and `seal`, a hash over
the id and `results.json`: it shows that a file was changed, not who changed it.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from mipkd.core import codec
from mipkd.core.archives import check_inflation
from mipkd.core.codec import CodecError
from mipkd.core.errors import MipkdError, UsageError
from mipkd.core.measurement import Measurement
from mipkd.core.names import why_unsafe
from mipkd.core.records import Built, TargetInfo
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import Image, Sink
from targets.base import ByteArray, check_options, files_of, find

SCHEMA = 2
RESULTS, SEAL = "results.json", "seal"
JOB = "job.json"
_RETRY = "make the kit anew and run it again on the device"

# What zipfile, numpy and our own reading raise on damaged bytes.
DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,  # a shape that no machine holds
    NotImplementedError,  # a kind of compression
    RuntimeError,  # encrypted
    SyntaxError,  # numpy's own header
    TypeError,
    ValueError,
)
Outputs = dict[tuple[int, int], ByteArray]  # by number of model and image


@dataclass(frozen=True)
class StoredJob:
    """A job as it lies in a folder, or as it was asked of a kit."""

    id: str
    target: str
    builts: tuple[Built, ...]  # their files are in the job's folder
    images: tuple[str, ...]  # names
    settings: BenchSettings
    files: Mapping[str, str]  # sha256 of each


@dataclass(frozen=True)
class _Asked:
    """What is read of a `job.json`."""

    target: str
    models: tuple[Built, ...]
    images: tuple[str, ...]
    settings: BenchSettings
    files: dict[str, str]


@dataclass(frozen=True)
class StoredResults:
    """What a machine made of a job."""

    job: str  # its id
    info: TargetInfo
    measurements: tuple[Measurement, ...]  # one a model, without scores


def write_job(
    file: Path,
    target: str,
    builts: Sequence[Built],
    settings: BenchSettings,
    images: Iterable[Image] = (),
) -> StoredJob:
    """Write a job as a zip that any Python can read."""
    names, hashes = [], {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        models = []
        for number, built in enumerate(builts):
            for name, part in _parts(built).items():
                place = f"models/{number}/{name}"
                hashes[place] = _add(packed, place, part.read_bytes())
            models.append({**codec.encode(built), "file": f"models/{number}/{built.file.name}"})
        for number, (image, lr_HWC) in enumerate(images):
            hashes[f"images/{number}.npy"] = _add(packed, f"images/{number}.npy", _npy(lr_HWC))
            names.append(image)
        stated = {
            "schema": SCHEMA,
            "target": target,
            "models": models,
            "images": names,
            "settings": codec.encode(settings),
            "files": hashes,
        }
        text = json.dumps(stated, indent=1, sort_keys=True).encode()
        id = _add(packed, JOB, text)
    return StoredJob(id, target, tuple(builts), tuple(names), settings, hashes)


def read_job(folder: Path) -> StoredJob:
    """The job in a folder, every file of it checked.

    Raises:
        UsageError: a file is missing or changed, or another version wrote it.
    """
    try:
        job = parse_job((folder / JOB).read_bytes(), folder)
    except OSError as error:
        raise UsageError(f"job: {folder}: no job in it: {error}", hint=_RETRY) from error
    for name, wanted in job.files.items():
        file = folder / name
        if not file.is_file() or hash_of(file.read_bytes()) != wanted:
            raise UsageError(f"job: {name} is missing or was changed", hint=_RETRY)
    return job


def parse_job(text: bytes, folder: Path, where: str = "job") -> StoredJob:
    """The job that a `job.json` in `folder` states; `where` it was found is said of a bad one.

    Raises:
        UsageError: it is damaged, or another version wrote it.
    """
    try:
        stated = codec.parse_json(text)
        _check_schema(where, stated)
        asked = codec.decode(_Asked, stated, folder)
    except (CodecError, LookupError, TypeError) as error:
        raise UsageError(f"{where}: damaged: {error}", hint=_RETRY) from error
    _refuse_unsafe(asked, folder, where)
    return StoredJob(
        hash_of(text), asked.target, asked.models, asked.images, asked.settings, asked.files
    )


def _refuse_unsafe(asked: _Asked, folder: Path, where: str) -> None:
    """
    Raises:
        UsageError: a file is not in the job's folder or list, or an option is not the target's own.
    """
    models = [b.file.relative_to(folder).as_posix() for b in asked.models if _below(b, folder)]
    listed = {str(part) for name in asked.files for part in (name, *PurePosixPath(name).parents)}
    for name in (*asked.files, *models):
        if why := why_unsafe(name):
            raise UsageError(f"{where}: damaged: {name[:80]!r} {why}", hint=_RETRY)
    if len(models) < len(asked.models) or not listed.issuperset(models):
        raise UsageError(f"{where}: damaged: a model's file is none of the job's", hint=_RETRY)
    try:
        allowed = find(asked.target).options
    except MipkdError:
        return  # a target that is not here opens nothing
    for built in asked.models:
        check_options(built.options, allowed, where)


def _below(built: Built, folder: Path) -> bool:
    return built.file.is_relative_to(folder)


def read_image(folder: Path, number: int) -> ByteArray:
    """An image of a job, or an output: uint8 RGB, HWC."""
    image: ByteArray = np.load(folder / f"{number}.npy", allow_pickle=False)
    return image


def write_image(file: Path, image_HWC: ByteArray) -> None:
    """All or nothing."""
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(_npy(image_HWC))
    partial.replace(file)


def write_results(file: Path, found: StoredResults, outputs: Path) -> None:
    """Seal the results and the outputs under `outputs`/M/N.npy into a zip, all or nothing."""
    partial = file.with_name(file.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        hashes = {}
        for part in sorted(outputs.glob("*/*.npy")):
            name = f"outputs/{part.relative_to(outputs).as_posix()}"
            hashes[name] = _add(packed, name, part.read_bytes())
        text = json.dumps({"schema": SCHEMA, **codec.encode(found), "files": hashes}).encode()
        _add(packed, RESULTS, text)
        packed.writestr(SEAL, _seal(found.job, text))
    partial.replace(file)


def read_results(file: Path | IO[bytes]) -> tuple[StoredResults, Outputs]:
    """The results in a zip, and the outputs.

    Raises:
        UsageError: no such file, damaged, changed, or of another version.
    """
    name = getattr(file, "name", file)
    try:
        check_inflation(file, name)
        with zipfile.ZipFile(file) as packed:
            text, seal = packed.read(RESULTS), packed.read(SEAL).decode()
            stated = codec.parse_json(text)
            _check_schema(str(name), stated)
            if seal != _seal(stated["job"], text):
                raise UsageError(f"{name}: {RESULTS} in it was changed", hint=_RETRY)
            outputs = {}
            for part, wanted in stated["files"].items():
                data = packed.read(part)
                if hash_of(data) != wanted:
                    raise UsageError(f"{name}: {part} in it was changed", hint=_RETRY)
                model, image = part.removesuffix(".npy").split("/")[-2:]
                outputs[int(model), int(image)] = np.load(io.BytesIO(data), allow_pickle=False)
        return codec.decode(StoredResults, stated), outputs
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        raise UsageError(f"{name}: no results of a kit: {error}", hint=_RETRY) from error


def give_outputs(outputs: Outputs, job: StoredJob, builts: Sequence[Built], take: Sink) -> None:
    """Give outputs to `take`, each with its model and the name of its image.

    Raises:
        UsageError: one is of no model or image of the job, or of another shape.
    """
    for (model, image), sr_HWC in sorted(outputs.items()):
        try:
            take(builts[model], job.images[image], sr_HWC)
        except (IndexError, ValueError) as error:
            what = f"output {model}/{image} does not fit its image: {error}"
            raise UsageError(f"results: damaged: {what}", hint=_RETRY) from error


def hash_of(data: bytes) -> str:
    """sha256."""
    return hashlib.sha256(data).hexdigest()


def hash_files(built: Built) -> dict[str, str]:
    """Name within its folder, and hash, of each of a model's files."""
    return {name: hash_of(part.read_bytes()) for name, part in _parts(built).items()}


def hash_image(image_HWC: ByteArray) -> str:
    """sha256 of an image's file in a job."""
    return hash_of(_npy(image_HWC))


def _parts(built: Built) -> dict[str, Path]:
    root = built.file.parent
    return {part.relative_to(root).as_posix(): part for part in files_of(built)}


def _check_schema(where: str, stated: Mapping[str, Any]) -> None:
    if stated["schema"] != SCHEMA:
        raise UsageError(
            f"{where}: its schema is {stated['schema']}, this program reads {SCHEMA}", hint=_RETRY
        )


def _seal(job: str, text: bytes) -> str:
    return hash_of(job.encode() + text)


def _npy(image_HWC: ByteArray) -> bytes:
    data = io.BytesIO()
    np.save(data, image_HWC, allow_pickle=False)
    return data.getvalue()


def _add(packed: zipfile.ZipFile, name: str, data: bytes) -> str:
    """The same bytes whenever they are written; gives their hash."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    packed.writestr(entry, data)
    return hash_of(data)
