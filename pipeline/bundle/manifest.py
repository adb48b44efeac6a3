"""`manifest.json`: every file of a bundle with its hash, and the models among them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mipkd.core.codec import decode_file, read_json
from mipkd.core.errors import MipkdError, UsageError
from mipkd.core.names import find_twins, model_folder, name_of_model, printable, why_unsafe
from mipkd.core.precision import PRECISIONS
from mipkd.core.ranges import Bytes, Multiple, Pixels, Scale
from mipkd.core.records import Built
from pipeline.receipts import hash_file
from targets.base import check_options, find

SCHEMA = 1
MANIFEST = "manifest.json"
SBOM = "sbom.cdx.json"  # here, since sbom.py needs CycloneDX and `check` does not have it
CATALOGUE = "openmodeldb.json"  # the models' entry there
SCRIPT = "upscale.vpy"  # for VapourSynth
SIGNATURE = "manifest.json.sig"  # of it, so it cannot be listed in it
FOREIGN, MISSING = "not of this bundle", "missing"  # what may be wrong with a file
_HINT = "give the folder bundle/ of a run, whole"
_DISTRUST = "do not trust it; a run writes its bundle anew"
_SHA256 = re.compile("[0-9a-f]{64}")
_TARGET = re.compile(r"[A-Za-z]\w*(:[\w.-]+)?", re.ASCII)
_LEFT = "an older version kept what it compiled here: delete the folder engines"
# What two runs of the same inputs can never have in common: times, and what tells them.
_OF_THE_CLOCK = ("bench", "card", "run")

Kind = Literal["measured", "emulated", "simulated", "not measured"]


@dataclass(frozen=True)
class File:
    """One file: what it is for, and what it must be."""

    sha256: str
    size: Bytes
    role: str  # the top folder it is in: model, golden, quality, bench; or card, sbom, script, ...

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256: not 64 hex digits: {self.sha256[:20]!r}")


@dataclass(frozen=True)
class Model:
    """A student in a target's own format."""

    target: str
    precision: str
    kind: Kind  # how its figures came about
    file: str  # within the bundle; a folder for a package
    size_bytes: Bytes
    scale: Scale
    multiple: Multiple
    options: dict[str, str]  # given to the runtime when opening
    notes: tuple[str, ...]
    versions: dict[str, str]  # that built it
    margin: Pixels  # LR pixels that a tile needs around it
    inexact_because: str  # why tiles differ from the whole even so; "" where they do not
    executes: str = ""  # as in `Built`

    def __post_init__(self) -> None:
        if not _TARGET.fullmatch(self.target):
            raise ValueError(f"target: no name of one: {self.target[:40]!r}")
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"precision: {self.precision[:40]!r}; known: {known}")
        if not self.file.startswith(f"{self.home}/"):
            raise ValueError(f"file: {self.file[:80]!r} is not in {self.home}/")

    @property
    def name(self) -> str:
        """How its folders and files are called."""
        return name_of_model(self.target, self.precision)

    @property
    def home(self) -> str:
        """Its folder in the bundle."""
        return model_folder(self.target, self.precision)

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
    scale: Scale
    multiple: Multiple
    models: tuple[Model, ...]
    files: dict[str, File]
    content: str = ""  # a hash over all here that two runs of the same inputs have in common
    seal: str = ""  # a hash over all else here: shows a change, not who made it

    def __post_init__(self) -> None:
        for name in self.files:
            if why := why_unsafe(name):
                raise ValueError(f"files: {name[:80]!r} {why}")
        if twins := find_twins(self.files):
            raise ValueError(f"files: {twins[0]!r} and {twins[1]!r} are one on some systems")
        names = [model.name.casefold() for model in self.models]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"models: {twice!r} is there twice")
        for model in self.models:
            if model.scale != self.scale:
                raise ValueError(f"scale: x{model.scale} of {model.name}, x{self.scale} in all")
            if not any(f == model.file or f.startswith(f"{model.file}/") for f in self.files):
                raise ValueError(f"models: {model.file[:80]!r} is not among its files")


@dataclass(frozen=True)
class Problem:
    """A file that is not what the manifest says."""

    file: str  # printable
    what: str
    hint: str = ""  # how it may have come there


def write(manifest: Manifest, folder: Path) -> None:
    """Seal it and write it into `folder`."""
    stated = asdict(replace(manifest, content=_content(manifest)))
    stated["seal"] = _seal(stated)
    (folder / MANIFEST).write_text(json.dumps(stated, indent=1, sort_keys=True))


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
    found = decode_file(Manifest, stated, file, hint=_DISTRUST)
    for model in found.models:
        allowed = _known_options(model.target)
        if allowed is not None:
            check_options(model.options, allowed, f"{file}: {model.name}")
    return found


def read_seal(text: str) -> str:
    """A seal that somebody typed.

    Raises:
        UsageError: it is none; a part of one is easier to forge, so it is none either.
    """
    seal = text.strip().lower()
    if not _SHA256.fullmatch(seal):
        raise UsageError(
            f"--sha256: not 64 hex digits: {text[:80]!r}",
            hint="give the whole seal, as verify prints it where the bundle was made",
        )
    return seal


def seal_of(folder: Path) -> str:
    """The hash over all that the manifest in a bundle states: what names this bundle."""
    return _seal(read_json(folder / MANIFEST, what="bundle", hint=_HINT))


def problems(folder: Path, manifest: Manifest) -> list[Problem]:
    """Files that are missing, changed, or not of the bundle."""
    sealed = manifest.seal == seal_of(folder)
    same = sealed and manifest.content in ("", _content(manifest))
    found = [] if same else [Problem(MANIFEST, "changed")]
    for name, wanted in manifest.files.items():
        if what := _whats_wrong(folder / name, wanted):
            found.append(Problem(name, what))
    return found + [_extra(folder, name) for name in _names(folder) if name not in manifest.files]


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
    """Whether something is wrong with a model's own files, or a folder that they are in."""
    return any(_concerns(problem, model.home) for problem in found)


def is_golden_damaged(model: Model, found: Sequence[Problem]) -> bool:
    """Whether something is wrong with the golden images that a model is replayed on."""
    places = ("golden/lr", f"golden/{model.name}")
    return any(_concerns(problem, place) for problem in found for place in places)


def _concerns(problem: Problem, folder: str) -> bool:
    """Whether it is in that folder, or the folder in it."""
    file, folder = f"{problem.file}/", f"{folder}/"
    return file.startswith(folder) or folder.startswith(file)


def _whats_wrong(file: Path, wanted: File) -> str:
    """What is wrong with a file of the list; "" if nothing is."""
    try:
        facts = file.lstat()
        if not stat.S_ISREG(facts.st_mode):
            return MISSING if stat.S_ISDIR(facts.st_mode) else "a link or a pipe, no file"
        same = facts.st_size == wanted.size and hash_file(file) == wanted.sha256
    except OSError as error:
        gone = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
        return MISSING if gone else f"not read: {error.strerror}"
    return "" if same else "changed"


def _extra(folder: Path, name: str) -> Problem:
    """A file that no bundle of ours holds."""
    if (folder / name).is_symlink():
        return Problem(printable(name), "a link", "where it leads nothing is hashed")
    left = _LEFT if "engines" in name.split("/")[2:-1] else ""
    return Problem(printable(name), FOREIGN, left)


def _names(folder: Path) -> Iterator[str]:
    """All below `folder` that is no folder of its own, but the manifest."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    yield from sorted(name for name in found if name not in (MANIFEST, SIGNATURE))


def _role(name: str) -> str:
    top = name.partition("/")[0]
    known = {"README.md": "card", "provenance.json": "provenance", SBOM: "sbom", "run.json": "run"}
    known |= {CATALOGUE: "card", SCRIPT: "script"}
    return known.get(top, top)


def _known_options(target: str) -> Mapping[str, str] | None:
    """What a target's models may bring along; None of one that is not here, which runs nothing."""
    try:
        return find(target).options
    except MipkdError:
        return None


def _content(manifest: Manifest) -> str:
    stated = asdict(replace(manifest, name="", created="", content="", seal=""))
    stated["files"] = {
        name: file for name, file in stated["files"].items() if _role(name) not in _OF_THE_CLOCK
    }
    return _hash(stated)


def _seal(stated: dict[str, Any]) -> str:
    """Over JSON as it is stated, so that a field of a newer version is under it too."""
    whole = {**stated, "seal": ""}
    whole["models"] = [
        # Manifests were sealed without this field where it is empty.
        {name: value for name, value in model.items() if value or name != "executes"}
        for model in whole["models"]
    ]
    return _hash(whole)


def _hash(stated: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
