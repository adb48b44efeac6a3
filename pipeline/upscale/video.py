"""Use a bundle's model on video: y4m in, y4m out, one frame in memory at a time."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import numpy as np

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray
from mipkd.core.yuv import rgb_of_yuv, yuv_of_rgb
from pipeline.bundle import manifest
from pipeline.run import as_stage_error
from pipeline.upscale.cutter import Cutter
from pipeline.upscale.pictures import Picture
from pipeline.upscale.tiles import bands
from pipeline.upscale.upscale import check_side
from pipeline.upscale.y4m import Y4mFile, Y4mHeader, Y4mPipe, Y4mReader
from targets.base import find

STANDARD = Path("-")  # stdin, stdout
SUFFIX = ".y4m"
# Bytes that hold a frame while it is converted: its planes, RGB, and floats between them.
_PER_LR_PIXEL, _PER_SR_PIXEL = 40, 30


@dataclass(frozen=True)
class Asked:
    """A video to be upscaled."""

    source: Path  # "-" is stdin
    result: Path  # "-" is stdout
    overwrite: bool = False  # a file that upscale did not make, too
    matrix: str | None = None  # of mipkd.core.yuv.MATRICES; None: by the size, as players do

    @property
    def name(self) -> str:
        """What errors call it."""
        return "stdin" if self.source == STANDARD else str(self.source)


@dataclass(frozen=True)
class Made:
    """What became of a video."""

    header: Y4mHeader  # of the source
    frames: int
    seconds: float
    levels: int | None  # largest difference of tiles to one piece, on a part; None: not looked at
    stopped: bool = False  # whoever read stdout has closed it


def find_video(paths: list[Path], out: Path) -> tuple[Path, Path] | None:
    """The one video that is to be upscaled and its result; None where pictures are.

    Raises:
        UsageError: several, or one that is to become a picture.
    """
    videos = [path for path in paths if path == STANDARD or path.suffix.lower() == SUFFIX]
    is_video = out == STANDARD or out.suffix.lower() == SUFFIX
    if not videos and not is_video:
        return None
    if len(paths) > 1:
        raise UsageError(f"upscale: {len(paths)} inputs, and a video goes alone", hint="give one")
    if not videos:
        raise UsageError(
            f"--out {out}: {paths[0]} is no y4m video",
            hint="ffmpeg -i VIDEO -f yuv4mpegpipe - | mipkd-pipeline upscale BUNDLE - -o -",
        )
    if out.is_dir() and videos[0] != STANDARD:
        return videos[0], out / videos[0].name
    if not is_video:
        what = f"--out {out}: a video becomes a video"
        raise UsageError(what, hint="give FILE.y4m, or - for stdout")
    return videos[0], out


def upscale_video(
    bundle: Path,
    model: manifest.Model,
    asked: Asked,
    out: BinaryIO | None,
    *,
    memory_bytes: int,
    side: int | None,
) -> Made:
    """Upscale frame by frame, into `out` where that is given; `memory_bytes` and `side` as of
    pictures.

    Raises:
        UsageError: no y4m video, another file in the result's place, a frame too large for memory.
        UnsupportedError: interlaced, or pixels of a kind that is not known.
        StageError: a frame is damaged, the disk is full.
    """
    check_side(model, side)
    try:
        with _open_source(asked.source) as source:
            reader = Y4mReader(source, asked.name, asked.matrix)
            return _upscale_frames(bundle, model, asked, reader, out, memory_bytes, side)
    except OSError as error:
        raise as_stage_error("upscale", error) from error


def _upscale_frames(
    bundle: Path,
    model: manifest.Model,
    asked: Asked,
    reader: Y4mReader,
    out: BinaryIO | None,
    memory_bytes: int,
    side: int | None,
) -> Made:
    header = reader.header
    kept_bytes = _bytes_of_frame(header, model.scale)
    if kept_bytes > memory_bytes // 2:
        width, height = header.size[::-1]
        raise UsageError(
            f"{asked.name}: a frame of {width}x{height} takes {kept_bytes / 2**30:.1f} GiB, over "
            f"half of --memory ({memory_bytes / 2**30:.1f} GiB): raise it"
        )
    frames = iter(reader)
    first = next(frames, None)
    if first is None:
        raise UsageError(f"{asked.name}: no frame in it")
    with closing(find(model.target).open(model.built(bundle))) as session:
        in_flight = session.frames_in_flight((1, 3, *_padded(header, model.multiple)))
        in_flight = max(1, min(in_flight, memory_bytes // 2 // kept_bytes))
        left_bytes = memory_bytes - in_flight * kept_bytes
        cutter = Cutter(model, model.built(bundle), left_bytes, side, at_once=in_flight)
        picture = _picture_of(first, header)
        levels, tiling = cutter.look(picture), cutter.tiling(picture)

        def upscale_frame(planes: ByteArray) -> ByteArray:
            lr_HWC = _picture_of(planes, header).rgb_HWC
            rows = bands(session, lr_HWC, tiling, scale=model.scale)
            return yuv_of_rgb(np.concatenate(list(rows)), header.kind)

        start, count = perf_counter(), 0
        with _open_result(asked, header.enlarge(model.scale), out) as result:
            for frame in process_in_order(upscale_frame, chain([first], frames), in_flight):
                try:
                    result.write(frame)
                except BrokenPipeError:
                    return Made(header, count, perf_counter() - start, levels, stopped=True)
                count += 1
    return Made(header, count, perf_counter() - start, levels)


def process_in_order(
    process: Callable[[ByteArray], ByteArray], frames: Iterable[ByteArray], in_flight: int
) -> Iterator[ByteArray]:
    """What `process` makes of each frame, so many of them at a time."""
    if in_flight == 1:
        yield from map(process, frames)
        return
    with ThreadPoolExecutor(in_flight) as threads:
        running: deque[Future[ByteArray]] = deque()
        for frame in frames:
            running.append(threads.submit(process, frame))
            if len(running) == in_flight:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _padded(header: Y4mHeader, multiple: int) -> tuple[int, int]:
    height, width = (side + -side % multiple for side in header.size)
    return height, width


def _picture_of(planes: ByteArray, header: Y4mHeader) -> Picture:
    return Picture(rgb_of_yuv(planes, header.size, header.kind), None, grey=False)


def _bytes_of_frame(header: Y4mHeader, scale: int) -> int:
    height, width = header.size
    return height * width * (_PER_LR_PIXEL + scale**2 * _PER_SR_PIXEL)


@contextmanager
def claim_stdout() -> Iterator[BinaryIO]:
    """Standard output for frames alone: what others print there meanwhile goes to stderr.

    Raises:
        UsageError: it is a terminal, or closed.
    """
    if sys.stdout is None or os.isatty(1):
        what = "closed" if sys.stdout is None else "a terminal"
        raise UsageError(f"--out -: stdout is {what}", hint="give FILE.y4m, or pipe it on")
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # of libraries and of processes that are started, too
    try:
        yield out
    finally:
        sys.stdout.flush()
        os.dup2(out.fileno(), 1)
        with suppress(BrokenPipeError):
            out.close()


@contextmanager
def _open_source(source: Path) -> Iterator[BinaryIO]:
    if source == STANDARD:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("stdin: no y4m video in it", hint="pipe one into it")
        yield sys.stdin.buffer
        return
    try:
        opened = source.open("rb")
    except OSError as error:
        raise UsageError(f"{source}: cannot be read: {error.strerror}") from error
    with opened:
        yield opened


@contextmanager
def _open_result(
    asked: Asked, header: Y4mHeader, out: BinaryIO | None
) -> Iterator[Y4mPipe | Y4mFile]:
    if out is not None:
        yield Y4mPipe(out, header)
        return
    if asked.source != STANDARD and asked.source.resolve() == asked.result.resolve():
        raise UsageError(f"{asked.source}: would be overwritten", hint="give another --out")
    asked.result.parent.mkdir(parents=True, exist_ok=True)
    file = Y4mFile(asked.result, header, overwrite=asked.overwrite)
    with file:
        yield file
