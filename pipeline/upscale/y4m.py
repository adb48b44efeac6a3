"""YUV4MPEG2 ("y4m"): uncompressed video that programs hand to each other through pipes.

A line of tags, then each frame: a line that begins with FRAME, and its planes. After the man page
yuv4mpeg(5) of mjpegtools, and FFmpeg's tag for the range of colours. FFmpeg reads first lines of up
to 96 bytes, so that nothing is added to them that can be spared.

Shapes: H W pixels. Values: uint8.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mipkd.core.errors import StageError, UnsupportedError, UsageError
from mipkd.core.images import ByteArray
from mipkd.core.yuv import YuvFormat
from pipeline.upscale.result_file import ResultFile

MAGIC = b"YUV4MPEG2"
_FRAME = b"FRAME"
_LONGEST_LINE = 4096
_LARGEST = 2**14  # pixels a side
_KINDS = {  # by tag: luma samples for one of chroma, and whether chroma lies on them
    "420": ((2, 2), (False, False)),
    "420jpeg": ((2, 2), (False, False)),
    "420mpeg2": ((2, 2), (False, True)),
    "420paldv": ((2, 2), (True, True)),
    "422": ((1, 2), (False, True)),
    "444": ((1, 1), (False, False)),
}
_SEALED = " XMIPKD="  # and 11 characters: the hash of all other bytes of a file
_NO_SEAL = "A" * 11  # of a file that is not whole yet
_FULL = "XCOLORRANGE=FULL"
_HINT = "make it with: ffmpeg -i VIDEO -pix_fmt yuv420p -f yuv4mpegpipe -"


@dataclass(frozen=True)
class Y4mHeader:
    """The first line."""

    size: tuple[int, int]  # height, width
    kind: YuvFormat
    tags: tuple[str, ...]  # but for the sides and for those that say the kind once more

    def line(self, seal: str = "") -> bytes:
        """As it is written."""
        height, width = self.size
        words = (MAGIC.decode(), f"W{width}", f"H{height}", *self.tags)
        return (" ".join(words) + seal + "\n").encode("latin-1")

    def enlarge(self, scale: int) -> Y4mHeader:
        """That of the same video, so many times as large."""
        return replace(self, size=(self.size[0] * scale, self.size[1] * scale))

    @property
    def frame_bytes(self) -> int:
        """Of one frame's planes."""
        return self.kind.count_bytes(self.size)


class Y4mReader:
    """A y4m stream, read frame by frame."""

    def __init__(self, source: BinaryIO, name: str, matrix: str | None = None) -> None:
        """`name` is said in errors; `matrix` is one of `mipkd.core.yuv.MATRICES`, None: by size.

        Raises:
            UsageError: it is no y4m stream, or its first line is damaged.
            UnsupportedError: it is interlaced, or its pixels are of a kind that is not known.
        """
        self._source, self._name = source, name
        self.header = _parse(source.readline(_LONGEST_LINE), name, matrix)

    def __iter__(self) -> Iterator[ByteArray]:
        """The planes of each frame.

        Raises:
            StageError: a frame is damaged, or ends too early.
        """
        number = 0
        while line := self._source.readline(_LONGEST_LINE):
            number += 1
            where = f"{self._name}: frame {number}"
            if line[:6] not in (_FRAME + b"\n", _FRAME + b" ") or not line.endswith(b"\n"):
                raise StageError(f"{where} is damaged: begins with {line[:16]!r}, not with FRAME")
            planes = self._source.read(self.header.frame_bytes)
            if len(planes) < self.header.frame_bytes:
                of = f"{len(planes)} of {self.header.frame_bytes} bytes"
                raise StageError(f"{where} ends after {of}")
            yield np.frombuffer(planes, np.uint8)


class Y4mPipe:
    """A y4m stream that somebody reads while it is written."""

    def __init__(self, out: BinaryIO, header: Y4mHeader) -> None:
        self._out, self._before = out, header.line()

    def write(self, frame: ByteArray) -> None:
        """The planes of the next frame.

        Raises:
            BrokenPipeError: nobody reads it any more.
        """
        for part in (self._before, _FRAME + b"\n", frame.data):
            self._out.write(part)
        self._out.flush()
        self._before = b""


class Y4mFile(ResultFile):
    """A y4m file under construction."""

    def __init__(self, file: Path, header: Y4mHeader, *, overwrite: bool) -> None:
        """Raises:
        UsageError: a file is there that is none of ours, and `overwrite` is not set.
        """
        super().__init__(file, overwrite=overwrite, is_ours=is_ours)
        self._header, self._hash = header, hashlib.sha256(header.line())
        self._out.write(header.line(_SEALED + _NO_SEAL))

    def write(self, frame: ByteArray) -> None:
        """The planes of the next frame."""
        for part in (_FRAME + b"\n", frame.data):
            self._out.write(part)
            self._hash.update(part)

    def _finish(self) -> None:
        self._out.seek(0)
        self._out.write(self._header.line(_SEALED + _seal_of(self._hash.digest())))


def is_ours(file: Path) -> bool:
    """Whether a file is a video as `Y4mFile` wrote it, to the last byte, or one of its partial
    files."""
    with file.open("rb") as opened:
        line = opened.readline(_LONGEST_LINE)
        before, mark, seal = line.partition(_SEALED.encode())
        if not line.startswith(MAGIC) or not mark:
            return False
        if seal == f"{_NO_SEAL}\n".encode():
            return file.suffix == ".partial"
        found = hashlib.sha256(before + b"\n")
        while part := opened.read(1 << 20):
            found.update(part)
    return seal == f"{_seal_of(found.digest())}\n".encode()


def _seal_of(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest[:8]).decode().rstrip("=")


def _parse(line: bytes, name: str, matrix: str | None) -> Y4mHeader:
    if line[: len(MAGIC) + 1] != MAGIC + b" ":
        begins = f"begins with {line[:16]!r}" if line else "is empty"
        raise UsageError(f"{name}: no y4m video: it {begins}", hint=_HINT)
    if not line.endswith(b"\n"):
        raise UsageError(f"{name}: damaged: its first line does not end", hint=_HINT)
    tags = [word for word in line.decode("latin-1").split()[1:] if word]
    by_letter = {tag[0]: tag[1:] for tag in tags if tag[0] != "X"}
    size = (_read_side(by_letter, "H", name), _read_side(by_letter, "W", name))
    _check_progressive(by_letter.get("I", "?"), name)
    kind = _find_kind(by_letter.get("C", "420jpeg"), name)
    spare = ("W", "H", "XYSCSS=", _SEALED.strip())
    kept = tuple(tag for tag in tags if not tag.startswith(spare))
    kind = replace(kind, matrix=matrix or matrix_by_size(size), full_range=_FULL in tags)
    return Y4mHeader(size, kind, kept)


def matrix_by_size(size: tuple[int, int]) -> str:
    """What players take for a video of height, width that does not say its matrix."""
    return "bt709" if size[1] >= 1280 or size[0] > 576 else "bt601"


def _read_side(tags: dict[str, str], letter: str, name: str) -> int:
    stated = tags.get(letter, "")
    if not re.fullmatch("[0-9]{1,6}", stated) or not 1 <= int(stated) <= _LARGEST:
        raise UsageError(
            f"{name}: damaged: {'width' if letter == 'W' else 'height'} {stated[:20]!r}; "
            f"known: 1 to {_LARGEST}",
            hint=_HINT,
        )
    return int(stated)


def _check_progressive(order: str, name: str) -> None:
    """Whether lines are of two times; "?" says that nobody knows, and is taken for progressive."""
    if order not in ("p", "?"):
        raise UnsupportedError(
            f"{name}: interlaced (I{order[:8]}); known: progressive video",
            hint="deinterlace it first: ffmpeg -vf bwdif",
        )


def _find_kind(tag: str, name: str) -> YuvFormat:
    if tag not in _KINDS:
        raise UnsupportedError(
            f"{name}: pixels {tag[:20]!r}; known: {', '.join(_KINDS)}, 8 bits",
            hint="convert it: ffmpeg -pix_fmt yuv420p",
        )
    return YuvFormat(*_KINDS[tag])
