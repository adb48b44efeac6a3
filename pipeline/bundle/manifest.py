"""`manifest.json`: every file of a bundle with its hash, and the models among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from mipkd.core.codec import decode_file, read_json
from mipkd.core.errors import UsageError
from mipkd.core.records import Built
from pipeline.run import hash_file

SCHEMA = 1
MANIFEST = "manifest.json"
SBOM = "sbom.cdx.json"  # here, since sbom.py needs CycloneDX and `check` does not have it
SIGNATURE = "manifest.json.sig"  # of it, so it cannot be listed in it
FOREIGN, MISSING = "not of this bundle", "missing"  # what may be wrong with a file
_HINT = "give the folder bundle/ of a run, whole"

Kind = Literal["measured", "simulated", "not measured"]


@dataclass(frozen=True)
class File:
    """One file: what it is for, and what it must be."""

    sha256: str
    size: int
    role: str  # the top folder it is in: model, golden, quality, bench; or card, provenance, sbom


@dataclass(frozen=True)
class Model:
    """A student in a target's own format."""

    target: str
    precision: str
    kind: Kind  # how its figures came about
    file: str  # within the bundle; a folder for a package
    size_bytes: int
    scale: int
    multiple: int
    options: dict[str, str]  # given to the runtime when opening
    notes: tuple[str, ...]
    versions: dict[str, str]  # that built it
    margin: int  # LR pixels that a tile needs around it
    inexact_because: str  # why tiles differ from the whole even so; "" where they do not
    executes: str = ""  # as in `Built`

    @property
    def name(self) -> str:
        """How its folders and files are called."""
        return name_of(self.target, self.precision)

    def built(self, bundle: Path) -> Built:
        """The record that its target opens."""
        return Built(
            target=self.target,
            precision=self.precision,
            role="student",
            file=bundle / self.file,
            size_bytes=self.size_bytes,
            scale=self.scale,
            multiple=self.multiple,
            options=self.options,
            notes=self.notes,
            versions=self.versions,
            executes=self.executes,
        )


@dataclass(frozen=True)
class Manifest:
    """A bundle's list of contents."""

    schema: int
    name: str  # of the run
    created: str
    program: str  # version
    scale: int
    multiple: int
    models: tuple[Model, ...]
    files: dict[str, File]
    seal: str = ""  # a hash over all else here: shows a change, not who made it


@dataclass(frozen=True)
class Problem:
    """A file that is not what the manifest says."""

    file: str
    what: str


def name_of(target: str, precision: str) -> str:
    """Such as `openvino-int8`, a name that every file system takes."""
    return f"{target}-{precision}".replace(":", "-")


def write(manifest: Manifest, folder: Path) -> None:
    """Seal it and write it into `folder`."""
    sealed = replace(manifest, seal=_seal(manifest))
    (folder / MANIFEST).write_text(json.dumps(asdict(sealed), indent=1, sort_keys=True))


def list_files(folder: Path) -> dict[str, File]:
    """Every file below `folder` but the manifest."""
    return {name: describe_file(folder, name) for name in _names(folder)}


def describe_file(folder: Path, name: str) -> File:
    """What a manifest says of the file `name` in `folder`."""
    return File(hash_file(folder / name), (folder / name).stat().st_size, _role(name))


def read(folder: Path) -> Manifest:
    """The manifest in a bundle.

    Raises:
        UsageError: no bundle, a damaged manifest, or one of another schema.
    """
    file = folder / MANIFEST
    stated = read_json(file, what="bundle", hint=_HINT)
    schema = stated.get("schema") if isinstance(stated, dict) else None
    if schema != SCHEMA:
        raise UsageError(
            f"{file}: its schema is {schema!r}, this program reads {SCHEMA}",
            hint="use the version of mipkd-pipeline that wrote it, or write the bundle anew: run",
        )
    found = decode_file(Manifest, stated, file, hint=_HINT)
    for name in (*found.files, *(model.file for model in found.models)):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{file}: {name} leads out of the bundle", hint="do not trust it")
    return found


def problems(folder: Path, manifest: Manifest) -> list[Problem]:
    """Files that are missing, changed, or not of the bundle."""
    found = [] if manifest.seal == _seal(manifest) else [Problem(MANIFEST, "changed")]
    for name, wanted in manifest.files.items():
        file = folder / name
        try:
            same = file.stat().st_size == wanted.size and hash_file(file) == wanted.sha256
        except OSError as error:
            gone = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
            found.append(Problem(name, MISSING if gone else f"not read: {error.strerror}"))
            continue
        if not same:
            found.append(Problem(name, "changed"))
    extra = [name for name in _names(folder) if name not in manifest.files]
    return found + [Problem(name, FOREIGN) for name in extra]


def check_models(manifest: Manifest) -> None:
    """Refuse a bundle of a run in which nothing could be built.

    Raises:
        UsageError: it holds no model.
    """
    if not manifest.models:
        raise UsageError(
            f"the bundle of {manifest.name} holds no model: its run built none",
            hint="the run's report says why",
        )


def is_damaged(model: Model, found: Sequence[Problem]) -> bool:
    """Whether something is wrong with a model's own files."""
    home = f"model/{model.name}/"
    return any(problem.file.startswith(home) for problem in found)


def _names(folder: Path) -> Iterator[str]:
    """Files below `folder`, but not the engines that a GPU's runtime keeps beside a model."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        cached = name.parts[0] == "model" and "engines" in name.parts[2:-1]
        if not file.is_dir() and name.as_posix() not in (MANIFEST, SIGNATURE) and not cached:
            yield name.as_posix()


def _role(name: str) -> str:
    top = name.partition("/")[0]
    known = {"README.md": "card", "provenance.json": "provenance", SBOM: "sbom"}
    return known.get(top, top)


def _seal(manifest: Manifest) -> str:
    stated = asdict(replace(manifest, seal=""))
    for model in stated["models"]:  # manifests written before it was known have no such field
        if not model["executes"]:
            del model["executes"]
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
