"""Frames at a camera's rate through one model, from bytes to bytes.

A camera does not wait: frame n is due n / fps after the first, and lies in a queue of its driver
until somebody takes it. The queue is short and the newest win: of frames that nobody took in time
the oldest are dropped. As many threads as the session wants frames in flight take frames, convert
them, run the net and convert what it gives; the camera has no thread and no cost of its own.

Shapes: H W low-res size. Values: uint8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter
from typing import Annotated, ClassVar, Literal

from mipkd.core.ranges import Range
from mipkd.core.yuv import YuvFormat, rgb_of_yuv, yuv_of_rgb
from targets._images import upscale
from targets.base import ByteArray, Session

CAMERA = YuvFormat((2, 2), (False, True), "bt709")  # as H.264 and cameras' drivers have it for HD
_MOST_FRAMES = 500_000  # of one stream: two numbers of each are kept

Process = Callable[[ByteArray], ByteArray]  # a camera's frame, as bytes, to a frame to be shown
_Side = Annotated[int, Range(1, 2**14)]
Bytes = Literal["yuv420", "rgb"]


@dataclass(frozen=True)
class StreamSettings:
    """A camera: how many frames a second, for how long, at which size."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # 0: no camera, a frame is due when there is room for it. None: likewise, and only of targets
    # that are made for frames per second.
    fps: Annotated[float, Range(0, 1000)] | None = None
    seconds: Annotated[float, Range(0, 3600)] = 10.0  # 0: no stream at all
    size: tuple[_Side, _Side] | None = None  # LR height, width; default the largest of bench.sizes
    takes: Bytes = "yuv420"  # what the camera gives
    gives: Bytes = "yuv420"  # what is shown or encoded
    waiting: Annotated[int, Range(1, 64)] = 1  # frames that wait in the driver's queue at most

    def __post_init__(self) -> None:
        if not 0 <= (self.fps or 0) <= 1000 or not 0 <= self.seconds <= 3600:
            raise ValueError("fps must be 0 to 1000, seconds 0 to 3600")
        if (self.fps or 0) * self.seconds > _MOST_FRAMES:
            raise ValueError(f"fps x seconds must be at most {_MOST_FRAMES} frames")
        if (self.size and min(self.size) < 1) or not 1 <= self.waiting <= 64:
            raise ValueError("size must be LR height and width, waiting 1 to 64")


@dataclass(frozen=True)
class Frames:
    """What became of a camera's frames, in its order; seconds since the first was due."""

    given: int  # that were due
    ready_s: tuple[float, ...]  # when each that came out was ready, those before it too
    age_s: tuple[float, ...]  # of it then, since it was due


class Camera:
    """Gives each frame to one of several threads, when it is due."""

    def __init__(self, fps: float, seconds: float, waiting: int) -> None:
        self.start = perf_counter()
        self._fps, self._seconds, self._waiting = fps, seconds, waiting
        self._total = max(1, round(fps * seconds))
        self._next = 0  # the oldest frame that is not dropped and not taken
        self._lock, self._over = threading.Lock(), threading.Event()

    @property
    def given(self) -> int:
        """How many frames were due."""
        return self._total if self._fps else self._next

    def take(self) -> tuple[int, float] | None:
        """Number of the next frame and when it was due, waited for; None after the last."""
        with self._lock:
            now = perf_counter()
            if not self._fps:
                over = self._over.is_set() or (self._next and now - self.start >= self._seconds)
                return None if over else self._give(now)
            newest = min(int((now - self.start) * self._fps), self._total - 1)
            self._next = max(self._next, newest - self._waiting + 1)
            if self._next >= self._total:
                return None
            due = self.start + self._next / self._fps
            while (left := due - perf_counter()) > 0:
                if self._over.wait(left):
                    return None
            return None if self._over.is_set() else self._give(due)

    def stop(self) -> None:
        """Give no more frames."""
        self._over.set()

    def _give(self, due: float) -> tuple[int, float]:
        self._next += 1
        return self._next - 1, due


def run_stream(
    process: Process, frames: Sequence[ByteArray], settings: StreamSettings, in_flight: int
) -> Frames:
    """Give a camera's frames, `frames` in turn, to as many threads as are to be in flight.

    What `process` raises goes through.
    """
    camera = Camera(settings.fps or 0.0, settings.seconds, settings.waiting)

    def work() -> list[tuple[int, float, float]]:
        done = []
        while taken := camera.take():
            number, due = taken
            process(frames[number % len(frames)])
            done.append((number, due, perf_counter()))
        return done

    if in_flight == 1:  # in the thread that opened the session
        parts = [work()]
    else:
        with ThreadPoolExecutor(in_flight, "stream") as threads:
            try:
                running = [threads.submit(work) for _ in range(in_flight)]
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                camera.stop()
            parts = [one.result() for one in running]
    done = sorted(one for part in parts for one in part)
    # A frame is shown after those before it.
    ready = list(accumulate((ready for _, _, ready in done), max))
    ages = (at - due for at, (_, due, _) in zip(ready, done, strict=True))
    since = (at - camera.start for at in ready)
    return Frames(camera.given, tuple(map(_in_us, since)), tuple(map(_in_us, ages)))


def make_process(
    session: Session, settings: StreamSettings, size: tuple[int, int], scale: int, multiple: int
) -> Process:
    """The way of a camera's frame of LR height, width to one that can be shown."""

    def process(frame: ByteArray) -> ByteArray:
        lr_HWC = rgb_of_yuv(frame, size, CAMERA) if settings.takes == "yuv420" else frame
        sr_HWC = upscale(session, lr_HWC, scale=scale, multiple=multiple)
        return yuv_of_rgb(sr_HWC, CAMERA) if settings.gives == "yuv420" else sr_HWC

    return process


def frames_of(images_HWC: Sequence[ByteArray], settings: StreamSettings) -> list[ByteArray]:
    """Images as the camera gives them."""
    if settings.takes == "rgb":
        return list(images_HWC)
    return [yuv_of_rgb(image, CAMERA) for image in images_HWC]


def describe_bytes(settings: StreamSettings) -> str:
    """Bytes in and bytes out, in words."""
    names = {"yuv420": str(CAMERA), "rgb": "RGB"}
    takes, gives = names[settings.takes], names[settings.gives]
    return f"{takes} in and out" if takes == gives else f"{takes} in, {gives} out"


def _in_us(seconds: float) -> float:
    """Rounded to microseconds, none of them 0."""
    return max(1e-6, round(seconds, 6))
