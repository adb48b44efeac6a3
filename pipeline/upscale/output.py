"""What results are: their format and depth, and a folder or one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from mipkd.core.errors import UsageError

SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}  # of results, by format
_FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


@dataclass(frozen=True)
class Output:
    """Where results go, and how they are written."""

    folder: Path
    format: str = "png"
    bits: int = 8  # a channel
    name: str = ""  # of the only result; empty: after each picture
    overwrite: bool = False  # files that upscale did not make, too

    @property
    def suffix(self) -> str:
        """That of results which are named after their pictures."""
        return SUFFIXES[self.format]


@dataclass(frozen=True)
class Asked:
    """A picture to be upscaled, and where its result goes in the folder of results."""

    file: Path
    result: PurePath


def choose_output(
    out: Path, wanted: str | None = None, bits: int = 8, *, overwrite: bool = False
) -> Output:
    """The output that `--out`, `--format` and `--bits` name; `--out` is one file where it ends as
    an image does, and is no folder.

    Raises:
        UsageError: an unknown format or depth, or two that contradict each other.
    """
    named = "" if out.is_dir() else _FORMATS.get(out.suffix.lower(), "")
    kind = _FORMATS.get(f".{wanted.lower()}", "") if wanted else named or "png"
    if not kind:
        raise UsageError(f"--format: {wanted!r}", hint=f"known: {', '.join(SUFFIXES)}")
    if named and named != kind:
        raise UsageError(
            f"--out {out} is a file of format {named}, --format asks for {kind}",
            hint="leave --format out, or give a folder",
        )
    if bits not in (8, 16):
        raise UsageError(f"--bits: {bits}", hint="known: 8, 16")
    if bits == 16 and kind != "png":
        raise UsageError(
            f"--bits 16: {kind} holds 8 bits a channel", hint="take --format png, or leave it out"
        )
    if named:
        return Output(out.parent, kind, bits, out.name, overwrite)
    return Output(out, kind, bits, overwrite=overwrite)


def name_results(asked: Sequence[Asked], output: Output) -> list[Asked]:
    """The pictures with the name that `output` gives to its only result.

    Raises:
        UsageError: there are several.
    """
    if not output.name:
        return list(asked)
    if len(asked) > 1:
        raise UsageError(
            f"--out {output.folder / output.name} is one file, for {len(asked)} pictures",
            hint="give a folder, and the format by --format",
        )
    return [replace(one, result=PurePath(output.name)) for one in asked]
