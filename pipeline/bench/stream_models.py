"""A camera's frames through the models of one target on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from time import perf_counter

import numpy as np

from mipkd.core.measurement import Measurement, Stream
from mipkd.core.records import Built
from pipeline.bench.board import Watch, describe_changes, read_settings
from pipeline.bench.host import OtherPrograms, is_emulated
from pipeline.bench.latency import FEWEST, BenchSettings, smooth_image
from pipeline.bench.models import list_untimed, name_of, note_if_busy, why_too_busy
from pipeline.bench.power import Source, power_source
from pipeline.bench.stream import Frames, describe_bytes, frames_of, make_process, run_stream
from targets.base import ByteArray, Feature, Session, Target

log = logging.getLogger(__name__)

_FRAMES = 4  # that the camera gives in turn


def stream_models(
    target: Target, builts: Sequence[Built], settings: BenchSettings
) -> tuple[Measurement, ...]:
    """The same models, of each student what became of a camera's frames: one after another, each
    alone on the machine; no latencies."""
    measurements = list_untimed(target, builts)
    if not streams(target, settings):
        return measurements
    return tuple(
        _stream_one(target, built, m, settings) if built.role == "student" else m
        for built, m in zip(builts, measurements, strict=True)
    )


def streams(target: Target, settings: BenchSettings) -> bool:
    """Whether a stream is measured: where frames per second are asked for, or what it is for."""
    asked = settings.stream.fps is not None or Feature.FRAMES_IN_FLIGHT in target.features
    timed = not (target.simulated or is_emulated())
    return asked and settings.stream.seconds > 0 and timed


def _stream_one(
    target: Target, built: Built, m: Measurement, settings: BenchSettings
) -> Measurement:
    asked, size, power = settings.stream, settings.stream_size, power_source()
    found = Stream(size, asked.fps or 0.0, describe_bytes(asked), 1, asked.waiting)
    frames = frames_of([_as_bytes(size, seed) for seed in range(_FRAMES)], asked)
    others, board = OtherPrograms(), read_settings()
    try:
        with closing(target.open(built)) as session, Watch() as watch:
            found = replace(found, in_flight=_frames_in_flight(session, built, size))
            process = make_process(session, asked, size, built.scale, built.multiple)
            process(frames[0])  # compiles where that waits for a size
            warm = replace(asked, fps=None, seconds=settings.warmup_s)
            run_stream(process, frames, warm, found.in_flight)
            others = OtherPrograms()
            work = partial(run_stream, process, frames, asked, found.in_flight)
            found = _metered(found, work, power)
    except Exception as error:  # one model's failure is a row of the report
        log.warning("%s: stream failed: %s", name_of(built), error)
        failed = f"inference failed: {type(error).__name__}: {error}"
        return replace(m, stream=replace(found, invalid_because=failed))
    share = others.share()
    changed = describe_changes(board, read_settings())
    doubt = f"settings changed while measured: {changed}" if changed else ""
    why = watch.throttled or doubt or why_too_busy(share, settings) or _why_too_few(found)
    seen = {f"{name}, stream": value for name, value in watch.conditions.items()}
    stream = replace(found, invalid_because=why)
    return replace(m, stream=stream, notes=note_if_busy(share, "stream"), conditions=seen)


def _metered(stream: Stream, work: Callable[[], Frames], power: Source | None) -> Stream:
    """The stream with what became of its frames, and joules per frame where a meter tells."""
    done: list[tuple[Frames, float]] = []

    def run() -> None:
        start = perf_counter()
        done.append((work(), perf_counter() - start))

    watts = power.mean_watts(run) if power else None
    if not done:  # a meter that gave nothing has not run it
        run()
    ((frames, seconds),) = done
    found = replace(stream, given=frames.given, ready_s=frames.ready_s, age_s=frames.age_s)
    if power is None or watts is None or not frames.age_s:
        return found
    joules = watts * seconds / len(frames.age_s)
    return replace(found, joules_per_frame=joules, power_from=power.name)


def _frames_in_flight(session: Session, built: Built, size: tuple[int, int]) -> int:
    height, width = (side + -side % built.multiple for side in size)
    return session.frames_in_flight((1, 3, height, width))


def _as_bytes(size: tuple[int, int], seed: int) -> ByteArray:
    """A smooth random image, uint8 RGB of shape (H, W, 3)."""
    image = smooth_image(size, 1, seed)[0].transpose(1, 2, 0)
    return np.ascontiguousarray(np.rint(image * 255), dtype=np.uint8)


def _why_too_few(stream: Stream) -> str:
    out = len(stream.age_s)
    if out >= FEWEST:
        return ""
    return f"{out} frames came out, fewer than {FEWEST}: raise bench.stream.seconds"
