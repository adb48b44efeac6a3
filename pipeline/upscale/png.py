"""Write a PNG in bands, so that a picture larger than memory never is in it as a whole.

Values: uint8, shape (rows, W, C), C 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. After the PNG
specification, third edition (W3C): chunks, filter type 2 ("Up").
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path
from types import TracebackType

import numpy as np

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}
_AT_ONCE = 64  # rows that are filtered and packed at a time
_LONGEST_NAME = 255  # bytes, of most file systems
# A private chunk of ours that a program which changes pixels drops, by its name: the capital at the
# end says that it must not be copied then. So a picture of ours that was edited is the user's.
_OURS = "miPD"
_HEAD = 8 + 25 + 8  # bytes up to the end of that chunk's name: signature, IHDR, length and name
_LEVEL = 3  # of zlib: higher ones cost more than the net


class PngBands:
    """A file under construction; it has its name only when every row is there."""

    def __init__(
        self,
        file: Path,
        size: tuple[int, int],
        channels: int,
        extra: dict[str, bytes],
        *,
        overwrite: bool = False,
    ) -> None:
        """`size` is height, width; `extra` are chunks such as "eXIf", in the order given.

        Raises:
            UsageError: a file is there that is none of ours, and `overwrite` is not set.
        """
        self._file, self._partial, self._overwrite = file, _beside(file), overwrite
        self._check_place(file)
        if not _is_empty(self._partial):
            self._check_place(self._partial)
        self._size, self._channels = size, channels
        self._deflate = zlib.compressobj(_LEVEL)
        self._rows = 0
        self._above = np.zeros((1, size[1] * channels), np.uint8)
        self._out = self._partial.open("wb")
        self._out.write(_SIGNATURE)
        header = struct.pack(">IIBBBBB", size[1], size[0], 8, _COLOUR[channels], 0, 0, 0)
        for name, data in {"IHDR": header, _OURS: b"", **extra}.items():
            self._chunk(name, data)

    def write(self, band_HWC: ByteArray) -> None:
        """The next rows."""
        rows = band_HWC.reshape(len(band_HWC), -1)
        for first in range(0, len(rows), _AT_ONCE):
            part = rows[first : first + _AT_ONCE]
            lines = np.empty((len(part), part.shape[1] + 1), np.uint8)
            lines[:, 0] = 2
            np.subtract(part[:1], self._above, out=lines[:1, 1:])
            np.subtract(part[1:], part[:-1], out=lines[1:, 1:])
            self._above = part[-1:].copy()
            self._chunk("IDAT", self._deflate.compress(lines.data))
        self._rows += len(rows)

    def __enter__(self) -> PngBands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self._rows == self._size[0], f"{self._rows} rows of {self._size[0]}"
                self._chunk("IDAT", self._deflate.flush())
                self._chunk("IEND", b"")
                self._out.flush()
                os.fsync(self._out.fileno())
            self._out.close()
            if kind is None:
                self._check_place(self._file)  # what came there meanwhile
                self._partial.replace(self._file)
        finally:
            self._out.close()
            self._partial.unlink(missing_ok=True)

    def _check_place(self, file: Path) -> None:
        if os.path.lexists(file) and not self._overwrite and not is_ours(file):
            raise UsageError(
                f"{file}: is there, and was not made by upscale: --overwrite replaces it",
                hint="or give another --out",
            )

    def _chunk(self, name: str, data: bytes) -> None:
        if name == "IDAT" and not data:
            return
        body = name.encode() + data
        self._out.write(struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body)))


def is_ours(file: Path) -> bool:
    """Whether a file is a PNG that `PngBands` wrote, or a part of one."""
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    return head.startswith(_SIGNATURE) and head[-4:] == _OURS.encode()


def _is_empty(file: Path) -> bool:
    """Whether it is what a crash leaves of the first bytes."""
    return file.is_file() and not file.is_symlink() and not file.stat().st_size


def profile_chunk(profile: bytes) -> bytes:
    """An ICC profile as the content of an "iCCP" chunk."""
    return b"ICC profile\0\0" + zlib.compress(profile)


def _beside(file: Path) -> Path:
    """A name for the unfinished file, no longer than its own where that is long already."""
    longer = file.with_name(file.name + ".partial")
    if len(os.fsencode(longer.name)) <= _LONGEST_NAME:
        return longer
    return file.with_name(hashlib.sha256(os.fsencode(file.name)).hexdigest()[:16] + ".partial")
