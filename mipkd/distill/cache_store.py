"""The store of a teacher's outputs for whole photos: 16-bit floats, mapped into memory.

A photo's values are on the disk before its line of the index: a store whose writer was killed is
continued after its last complete line.

Shapes: C channels, K positions, L latent channels, H W low-res size, S scale.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import StageError
from mipkd.core.records import TeacherCache

HalfArray = npt.NDArray[np.float16]

KINDS = ("image", "latents")  # in the order of `TeacherOutput.arrays`
HALF = np.dtype(np.float16).itemsize
_INDEX = "index.jsonl"


@dataclass(frozen=True)
class TeacherOutput:
    """A teacher's image and latents of one photo."""

    image_HWC: HalfArray  # (S*H, S*W, 3), not clamped
    latents_KHWL: HalfArray | None = None

    @property
    def arrays(self) -> list[HalfArray]:
        """The image, and the latents if there are any."""
        return [self.image_HWC, *([] if self.latents_KHWL is None else [self.latents_KHWL])]


def open_cache(cache: TeacherCache, photos: int) -> list[TeacherOutput]:
    """The teacher's outputs for each of `photos` photos, read from the disk when used.

    Raises:
        StageError: the files are damaged or incomplete.
    """
    try:
        rows = _read_rows(cache.folder)
        whole = all(_end(rows[-1][kind]) == _size(_file(cache.folder, kind)) for kind in rows[0])
    except (ValueError, KeyError, IndexError, TypeError):
        rows, whole = [], False
    if not whole or len(rows) != photos:
        raise StageError(
            f"teacher cache: {cache.folder} is damaged", hint="delete this folder: it is made again"
        )
    maps = {kind: np.memmap(_file(cache.folder, kind), np.float16, mode="r") for kind in rows[0]}

    def view(kind: str, at: int, shape: list[int]) -> HalfArray:
        first = at // HALF
        return maps[kind][first : first + prod(shape)].reshape(shape)

    return [TeacherOutput(*(view(kind, **place) for kind, place in row.items())) for row in rows]


def link_images(cache: TeacherCache, out: Path) -> None:
    """Make a store of a cache's images alone; a hard link if the file system can."""
    target, source = _file(out, "image"), _file(cache.folder, "image")
    target.unlink(missing_ok=True)
    # The index first: a writer that finds no index would truncate the linked file.
    lines = [_line({"image": row["image"]}) for row in _read_rows(cache.folder)]
    (out / _INDEX).write_bytes(b"".join(lines))
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


class CacheWriter:
    """Appends photos to a store, after its complete ones."""

    def __init__(self, folder: Path, kinds: Sequence[str]) -> None:
        rows = _read_rows(folder)
        while rows and not all(_end(rows[-1][k]) <= _size(_file(folder, k)) for k in kinds):
            rows.pop()
        self.count = len(rows)
        self._opened = ExitStack()
        self._index = self._open_at(folder / _INDEX, sum(len(_line(row)) for row in rows))
        ends = {kind: _end(rows[-1][kind]) if rows else 0 for kind in kinds}
        self._files = {kind: self._open_at(_file(folder, kind), end) for kind, end in ends.items()}

    def add(self, output: TeacherOutput) -> None:
        """Write the outputs for one photo."""
        row = {}
        for (kind, file), values in zip(self._files.items(), output.arrays, strict=True):
            row[kind] = {"at": file.tell(), "shape": list(values.shape)}
            file.write(np.ascontiguousarray(values).data)
            file.flush()
            os.fsync(file.fileno())
        self._index.write(_line(row))
        self._index.flush()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _open_at(self, path: Path, size: int) -> IO[bytes]:
        """The file, truncated to `size` bytes, open for appending."""
        file = self._opened.enter_context(path.open("ab"))
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        return file


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of the index."""
    text = (folder / _INDEX).read_text() if (folder / _INDEX).is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.f16"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _end(place: dict[str, Any]) -> int:
    return int(place["at"] + prod(place["shape"]) * HALF)
