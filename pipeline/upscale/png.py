"""Write a PNG in bands, so that a picture larger than memory never is in it as a whole.

Values: uint8 or uint16, shape (rows, W, C), C 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. After the
PNG specification, third edition (W3C): chunks, filter type 2 ("Up").
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from mipkd.core.images import ByteArray
from pipeline.upscale.result_file import ResultFile

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}
_AT_ONCE = 64  # rows that are filtered and packed at a time
# A private chunk of ours that a program which changes pixels drops, by its name: the capital at the
# end says that it must not be copied then. So a picture of ours that was edited is the user's.
_OURS = "miPD"
_HEAD = 8 + 25 + 8  # bytes up to the end of that chunk's name: signature, IHDR, length and name
_LEVEL = 3  # of zlib: higher ones cost more than the net


class PngBands(ResultFile):
    """A PNG under construction."""

    def __init__(
        self,
        file: Path,
        size: tuple[int, int],
        channels: int,
        extra: dict[str, bytes],
        *,
        overwrite: bool = False,
        bits: int = 8,
    ) -> None:
        """`size` is height, width; `extra` are chunks such as "eXIf", in the order given.

        Raises:
            UsageError: a file is there that is none of ours, and `overwrite` is not set.
        """
        super().__init__(file, overwrite=overwrite, is_ours=is_ours)
        self._size, self._type = size, ">u2" if bits == 16 else "u1"
        self._deflate = zlib.compressobj(_LEVEL)
        self._rows = 0
        self._above = np.zeros((1, size[1] * channels * bits // 8), np.uint8)
        self._out.write(_SIGNATURE)
        header = struct.pack(">IIBBBBB", size[1], size[0], bits, _COLOUR[channels], 0, 0, 0)
        for name, data in {"IHDR": header, _OURS: b"", **extra}.items():
            self._chunk(name, data)

    def write(self, band_HWC: ByteArray) -> None:
        """The next rows."""
        stored = np.ascontiguousarray(band_HWC, self._type)
        rows = stored.reshape(len(stored), -1).view(np.uint8)
        for first in range(0, len(rows), _AT_ONCE):
            part = rows[first : first + _AT_ONCE]
            lines = np.empty((len(part), part.shape[1] + 1), np.uint8)
            lines[:, 0] = 2
            np.subtract(part[:1], self._above, out=lines[:1, 1:])
            np.subtract(part[1:], part[:-1], out=lines[1:, 1:])
            self._above = part[-1:].copy()
            self._chunk("IDAT", self._deflate.compress(lines.data))
        self._rows += len(rows)

    def _finish(self) -> None:
        assert self._rows == self._size[0], f"{self._rows} rows of {self._size[0]}"
        self._chunk("IDAT", self._deflate.flush())
        self._chunk("IEND", b"")

    def _chunk(self, name: str, data: bytes) -> None:
        if name == "IDAT" and not data:
            return
        body = name.encode() + data
        self._out.write(struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body)))


def is_ours(file: Path) -> bool:
    """Whether a file is a PNG that `PngBands` wrote, or a part of one."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    return head.startswith(_SIGNATURE) and head[-4:] == _OURS.encode()


def profile_chunk(profile: bytes) -> bytes:
    """An ICC profile as the content of an "iCCP" chunk."""
    return b"ICC profile\0\0" + zlib.compress(profile)
