"""Write a picture as JPEG or WebP, which are made as a whole and not in bands.

A JPEG or a WebP has no field that editors must drop, as PNG has. So the mark of ours holds the hash
of all other bytes of the file: a picture that was edited or saved anew is the user's.
"""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray
from pipeline.upscale.pictures import Picture
from pipeline.upscale.result_file import ResultFile

_MARK = b"mipkd-pipeline upscale, sha256 of the other bytes: "
_JPEG_START, _COMMENT = b"\xff\xd8", b"\xff\xfe"
_WEBP_CHUNK = b"miPD"
_HAS_ALPHA = 0x10  # flag of the VP8X header
_LONGEST = {"JPEG": 65_535, "WEBP": 16_383}  # pixels a side
# JPEG near the pixels: no colour is halved in size. WebP keeps every pixel.
_SETTINGS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0, "optimize": True},
    "WEBP": {"lossless": True, "exact": True},
}
_BYTES_PER_VALUE = 3  # the rows, Pillow's copy, and what is packed


class WholeFile(ResultFile):
    """A JPEG or WebP under construction: its rows are kept until the last is there."""

    def __init__(
        self,
        file: Path,
        kind: str,
        size: tuple[int, int],
        picture: Picture,
        *,
        overwrite: bool,
        memory_bytes: int,
    ) -> None:
        """`size` is height, width; `kind` is Pillow's name of the format.

        Raises:
            UsageError: a file is there that is none of ours, or the format or the memory does not
                hold so large a picture.
        """
        self._kind, self._picture = kind, picture
        _check_size(file, kind, size, picture.channels, memory_bytes)
        super().__init__(file, overwrite=overwrite, is_ours=is_ours)
        self._pixels = np.empty((*size, picture.channels), np.uint8)
        self._rows = 0

    def write(self, band_HWC: ByteArray) -> None:
        """The next rows."""
        self._pixels[self._rows : self._rows + len(band_HWC)] = band_HWC
        self._rows += len(band_HWC)

    def _finish(self) -> None:
        from PIL import Image

        assert self._rows == len(self._pixels), f"{self._rows} rows of {len(self._pixels)}"
        image = Image.fromarray(
            self._pixels[..., 0] if self._pixels.shape[2] == 1 else self._pixels
        )
        if self._kind == "JPEG" and self._picture.alpha_HW1 is not None:
            over = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
            image = image.convert("L" if self._picture.grey else "RGB")
        elif self._kind == "WEBP" and image.mode in ("L", "LA"):
            image = image.convert("RGB" if image.mode == "L" else "RGBA")
        known = {"icc_profile": self._picture.profile, "exif": self._picture.exif}
        extra = {name: value for name, value in known.items() if value}
        packed = io.BytesIO()
        image.save(packed, self._kind, **_SETTINGS[self._kind], **extra)
        mark = _mark_jpeg if self._kind == "JPEG" else _mark_webp
        self._out.write(mark(packed.getvalue(), image.size, image.mode == "RGBA"))


def _check_size(
    file: Path, kind: str, size: tuple[int, int], channels: int, memory_bytes: int
) -> None:
    if max(size) > _LONGEST[kind]:
        raise UsageError(
            f"{file}: {size[1]}x{size[0]} pixels, and {kind} holds {_LONGEST[kind]} a side: "
            "--format png has no such limit"
        )
    needed = size[0] * size[1] * channels * _BYTES_PER_VALUE
    if needed > memory_bytes:
        raise UsageError(
            f"{file}: {kind} of {size[1]}x{size[0]} pixels takes {needed / 2**30:.1f} GiB, "
            f"{max(0, memory_bytes) / 2**30:.1f} GiB are left of --memory: raise it, or take "
            "--format png, which is written in bands"
        )


def is_ours(file: Path) -> bool:
    """Whether a file is a JPEG or WebP as `WholeFile` wrote it, to the last byte."""
    content = file.read_bytes()
    if content.startswith(_JPEG_START + _COMMENT):
        (length,) = struct.unpack_from(">H", content, 4)
        mark, rest = content[6 : 4 + length], _JPEG_START + content[4 + length :]
        return mark == _mark_of(rest)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        chunks = content[12 : -len(_webp_chunk(b""))]
        return content == _webp_of(chunks)
    return False


def _mark_of(rest: bytes) -> bytes:
    return _MARK + hashlib.sha256(rest).hexdigest().encode()


def _mark_jpeg(content: bytes, size: tuple[int, int], alpha: bool) -> bytes:
    """A comment after the first marker."""
    mark, rest = _mark_of(content), content[len(_JPEG_START) :]
    return _JPEG_START + _COMMENT + struct.pack(">H", len(mark) + 2) + mark + rest


def _mark_webp(content: bytes, size: tuple[int, int], alpha: bool) -> bytes:
    """A chunk at the end, which asks for the extended header (VP8X) before all others."""
    chunks = content[12:]
    if not chunks.startswith(b"VP8X"):
        sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
        flags = struct.pack("<I", _HAS_ALPHA if alpha else 0)
        chunks = b"VP8X" + struct.pack("<I", 10) + flags + sides + chunks
    return _webp_of(chunks)


def _webp_of(chunks: bytes) -> bytes:
    body = chunks + _webp_chunk(chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _webp_chunk(chunks: bytes) -> bytes:
    mark = _mark_of(chunks)
    return _WEBP_CHUNK + struct.pack("<I", len(mark)) + mark + b"\0" * (len(mark) % 2)
