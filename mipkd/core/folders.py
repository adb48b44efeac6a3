"""Find the photos in a folder and all folders below it, and say what is left out and why."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePath

from mipkd.core.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff")
HEIF_HINT = "pip install 'mipkd-pipeline[heif]'"
_HEIF, _AVIF = (".heic", ".heif", ".hif"), (".avif",)
_NO_HEIF, _NO_AVIF = "HEIC without a reader", "AVIF without a reader"
_REMEDIES = {_NO_HEIF: HEIF_HINT, _NO_AVIF: "pip install -U pillow"}
_NOT_TAKEN = {
    "video": (".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm", ".3gp", ".mts", ".insv"),
    "raw": (".dng", ".cr2", ".cr3", ".arw", ".nef", ".nrw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    "other format": (".gif", ".apng", ".jp2", ".jxl", ".psd", ".ppm", ".tga", ".exr", ".hdr"),
}
# What systems keep for themselves: thumbnails, resource forks, bins.
_NOT_ENTERED = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found")

_RUN_MARK = "journal.jsonl"  # of a run of ours, whose folder may lie among the photos


@dataclass(frozen=True)
class LeftOut:
    """A file that is not used; reasons are counted, so they are few and short."""

    file: PurePath  # from the folder that was given
    reason: str
    why: str = ""  # more about this one

    def __str__(self) -> str:
        return f"{self.file}: {self.why or self.reason}"


@dataclass
class Walked:
    """The images in a folder, sorted by relative path, and what else looked like photos."""

    files: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def list_images(folder: Path) -> list[Path]:
    """The images of a folder and the folders below it, sorted by relative path.

    Raises:
        UsageError: no such folder, a file instead of one, or no image in it.
    """
    return walk_images(folder).files


def walk_images(folder: Path) -> Walked:
    """The images of a folder and the folders below it, hidden ones apart.

    Links to folders are followed, each folder entered once and each file taken once.

    Raises:
        UsageError: no such folder, a file instead of one, or no image in it.
    """
    if not folder.is_dir():
        kind = "a file, not a folder" if folder.exists() else "no such folder"
        raise UsageError(f"{folder}: {kind}", hint="give a folder of photos")
    found = Walked()
    for file in sorted(_walk(folder, found), key=lambda file: file.relative_to(folder).parts):
        _sort_in(file, folder, found)
    _drop_links(folder, found)
    if not found.files:
        raise UsageError(f"{folder}: no image in it", hint=_hint_of_none(found))
    return found


def readable_suffixes() -> tuple[str, ...]:
    """The suffixes of files that can be read here."""
    heif = _HEIF if find_spec("pillow_heif") else ()
    return (*SUFFIXES, *heif, *(_AVIF if _reads_avif() else ()))


def count_reasons(left_out: list[LeftOut]) -> dict[str, int]:
    """How many files were left out for each reason, the commonest first."""
    reasons = [one.reason for one in left_out]
    return {r: reasons.count(r) for r in sorted(set(reasons), key=lambda r: (-reasons.count(r), r))}


def say_reasons(counts: Mapping[str, int]) -> str:
    """What was left out in one line, and how to get what a reader is missing for."""
    named = {reason: f"{reason} ({how})" for reason, how in _REMEDIES.items()}
    return ", ".join(f"{number} {named.get(reason, reason)}" for reason, number in counts.items())


def _walk(folder: Path, found: Walked) -> Iterator[Path]:
    entered = {os.path.realpath(folder)}

    def refuse(error: OSError) -> None:
        at = Path(error.filename or folder)
        found.left_out.append(LeftOut(_below(at, folder), "folder that may not be read"))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        here = Path(place)
        folders[:] = [name for name in sorted(folders) if _enters(here / name, entered)]
        # "._photo.jpg" is what macOS leaves on foreign disks.
        yield from (here / name for name in names if not name.startswith("."))


def _enters(folder: Path, entered: set[str]) -> bool:
    """Whether a folder is one to look into, and not one that was entered by another way."""
    if folder.name.startswith(".") or folder.name.lower() in _NOT_ENTERED:
        return False
    real = os.path.realpath(folder)
    if real in entered or (folder / _RUN_MARK).is_file():
        return False
    entered.add(real)
    return True


def _drop_links(folder: Path, found: Walked) -> None:
    """Leave out a file's further names: links to another file of the folder."""
    first: dict[tuple[int, int], Path] = {}
    for file in sorted(found.files, key=Path.is_symlink):
        with suppress(OSError):  # a broken link: reading says so
            facts = file.stat()
            one = first.setdefault((facts.st_dev, facts.st_ino), file)
            if one != file and facts.st_ino:  # some file systems number nothing
                found.files.remove(file)
                left = LeftOut(_below(file, folder), "duplicate", "a link to another one")
                found.left_out.append(left)


def _sort_in(file: Path, folder: Path, found: Walked) -> None:
    """Add a file to the images or, if it is a kind of photo that is not read, to the rest."""
    suffix = file.suffix.lower()
    if suffix in readable_suffixes():
        if _is_regular(file):
            found.files.append(file)
        else:
            found.left_out.append(LeftOut(_below(file, folder), "unreadable", "no regular file"))
    elif reason := _reason_of(suffix):
        found.left_out.append(LeftOut(_below(file, folder), reason))


def _reason_of(suffix: str) -> str:
    if suffix in _HEIF:
        return _NO_HEIF
    if suffix in _AVIF:
        return _NO_AVIF
    return next((kind for kind, suffixes in _NOT_TAKEN.items() if suffix in suffixes), "")


def _is_regular(file: Path) -> bool:
    """Not a pipe or a device, at which reading would wait; a broken link says so when read."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return True


def _below(file: Path, folder: Path) -> PurePath:
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def _reads_avif() -> bool:
    from PIL import features

    return bool(features.check("avif"))


def _hint_of_none(found: Walked) -> str:
    known = "known: " + " ".join(readable_suffixes())
    said = say_reasons(count_reasons(found.left_out))
    return f"{known}; left out: {said}" if said else known
