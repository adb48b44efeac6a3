"""The store of what a teacher makes of whole photos: 16-bit floats, mapped into memory.

A photo's values are on the disk before its line of the index is: a store whose writer was killed
goes on after its last whole line.

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

KINDS = ("image", "latents")  # in the order of `Taught.arrays`
HALF = np.dtype(np.float16).itemsize
_INDEX = "index.jsonl"


@dataclass(frozen=True)
class Taught:
    """What a teacher made of one photo."""

    image_HWC: HalfArray  # (S*H, S*W, 3), not clamped
    latents_KHWL: HalfArray | None = None

    @property
    def arrays(self) -> list[HalfArray]:
        """All that there is."""
        return [self.image_HWC, *([] if self.latents_KHWL is None else [self.latents_KHWL])]


def open_cache(cache: TeacherCache, photos: int) -> list[Taught]:
    """What the teacher made of each of so many photos, none of it read before it is used.

    Raises:
        StageError: the files are not those that were made.
    """
    try:
        rows = _rows(cache.folder)
        whole = all(_end(rows[-1][kind]) == _size(_file(cache.folder, kind)) for kind in rows[0])
    except (ValueError, KeyError, IndexError, TypeError):
        rows, whole = [], False
    if not whole or len(rows) != photos:
        raise StageError(
            f"teacher cache: {cache.folder} is damaged",
            hint="delete this folder: it is made again",
        )
    maps = {kind: np.memmap(_file(cache.folder, kind), np.float16, mode="r") for kind in rows[0]}

    def view(kind: str, at: int, shape: list[int]) -> HalfArray:
        first = at // HALF
        return maps[kind][first : first + prod(shape)].reshape(shape)

    return [Taught(*(view(kind, **place) for kind, place in row.items())) for row in rows]


def link_images(cache: TeacherCache, out: Path) -> None:
    """A store of a cache's images alone; on the disk they lie once, where it can link."""
    made, source = _file(out, "image"), _file(cache.folder, "image")
    made.unlink(missing_ok=True)
    # The index first: a writer that finds a link without one would cut the file of the other.
    lines = [_line({"image": row["image"]}) for row in _rows(cache.folder)]
    (out / _INDEX).write_bytes(b"".join(lines))
    try:
        made.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, made)


class CacheWriter:
    """Appends photos to a store, after those that it holds whole."""

    def __init__(self, folder: Path, kinds: Sequence[str]) -> None:
        rows = _rows(folder)
        while rows and not all(_end(rows[-1][k]) <= _size(_file(folder, k)) for k in kinds):
            rows.pop()
        self.count = len(rows)
        self._opened = ExitStack()
        self._index = self._cut(folder / _INDEX, sum(len(_line(row)) for row in rows))
        ends = {kind: _end(rows[-1][kind]) if rows else 0 for kind in kinds}
        self._files = {kind: self._cut(_file(folder, kind), end) for kind, end in ends.items()}

    def add(self, taught: Taught) -> None:
        """Write what the teacher made of one photo."""
        row = {}
        for (kind, file), values in zip(self._files.items(), taught.arrays, strict=True):
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

    def _cut(self, path: Path, size: int) -> IO[bytes]:
        """The file to be written on from that size."""
        file = self._opened.enter_context(path.open("ab"))
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        return file


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the index."""
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
