"""Latency of several sessions at one input size, interleaved, every sample kept.

Models take turns in random order, so that a machine that slows down slows all of them. A turn
lasts `turn_s`: what ran before leaves its data in the caches and its threads spinning, so the
first call of a turn is not counted unless it alone outlasts the turn.

Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

import gc
import logging
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter_ns
from typing import Annotated, ClassVar, cast

import numpy as np

from mipkd.core import memory
from mipkd.core.measurement import Latency
from mipkd.core.ranges import Range, Share
from pipeline.bench.power import Energy, Source, joules_per_frame
from pipeline.bench.stream import StreamSettings
from targets._images import upscale
from targets.base import FloatArray, Session

log = logging.getLogger(__name__)

FEWEST = 5  # samples; a median of fewer says nothing
PLENTY = 5000  # samples; more would not sharpen a p99, and all are kept in files
_TURN_CALLS = 500  # so that a model of microseconds does not fill a turn with 100,000 samples
_METERED_S = 0.5
_END_TO_END_NS = 200_000_000
_TOO_FAST = 1 / 3  # of the median: no clock moves that far, a call that does not block does


# A bundle brings its settings along: what it asks for ends.
_Side = Annotated[int, Range(1, 2**14)]
_Seconds = Annotated[float, Range(0, 3600)]
_Calls = Annotated[int, Range(0, 10**6)]


@dataclass(frozen=True)
class BenchSettings:
    """How long to measure, at which sizes, and when to call a measurement INVALID.

    Times are per model and size. `max_time_s` ends the measurement of a model so heavy that
    `min_samples` would take minutes; with fewer than 5 samples by then it is INVALID.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    sizes: tuple[tuple[_Side, _Side], ...] = ((64, 64), (128, 128), (180, 320))  # LR height, width
    warmup_s: _Seconds = 0.3
    min_warmups: _Calls = 2  # runs, after the cold start
    min_time_s: _Seconds = 1.0
    min_samples: _Calls = 20
    max_time_s: _Seconds = 30.0
    turn_s: _Seconds = 0.1
    max_drift: Share = 0.3  # between the medians of the first and the last third
    max_busy: Share = 0.7  # of the CPU's time, all cores together, taken by other programs
    attempts: _Calls = 3  # a measurement that drifts is made anew, each time twice as long
    seed: int = 0  # of the input image and of the order of turns
    stream: StreamSettings = field(default_factory=StreamSettings)

    def __post_init__(self) -> None:
        if not self.sizes or any(side < 1 for size in self.sizes for side in size):
            raise ValueError("sizes must be pairs of LR height and width, each at least 1")
        if self.min_samples < FEWEST:
            raise ValueError(f"min_samples must be at least {FEWEST}")
        if self.attempts < 1 or self.max_time_s < self.min_time_s:
            raise ValueError("attempts must be at least 1, max_time_s at least min_time_s")

    @property
    def stream_size(self) -> tuple[int, int]:
        """LR height, width of a stream's frames."""
        return self.stream.size or max(self.sizes, key=math.prod)


@dataclass
class LoadCost:
    """What a session took so far: seconds to load, and memory where the system knows it."""

    load_s: float
    memory_bytes: int | None


@contextmanager
def measure_memory_rise() -> Iterator[list[int]]:
    """A list that holds, at the end, by how many bytes this process's memory rose at most.

    It stays empty where the system does not know.
    """
    memory.reset_peak()
    before, found = memory.resident_bytes(), list[int]()
    yield found
    peak = memory.peak_bytes()
    if before is not None and peak is not None:
        found.append(max(0, peak - before))


def compare(
    sessions: Mapping[str, Session],
    size: tuple[int, int],
    settings: BenchSettings,
    *,
    multiples: Mapping[str, int] | None = None,
    power: Source | None = None,
    costs: Mapping[str, LoadCost] | None = None,
) -> dict[str, Latency]:
    """The latency of each session at LR `size`, measured in turns in one go.

    `multiples` names sessions whose input sides must be multiples of a number: they get the
    image padded, as they would in use. A session that raises becomes an INVALID latency. With a
    meter in `power` each then runs alone for twice `min_time_s`, for its joules per frame. What
    the first inference takes of memory is added to `costs`.
    """
    runners = []
    for name, session in sessions.items():
        lr_NCHW = _input(session, size, (multiples or {}).get(name, 1), settings.seed)
        runners.append(_Runner(name, session, lr_NCHW, load_cost=(costs or {}).get(name)))
    for runner in runners:
        _warm_up(runner, settings)
    well = [runner for runner in runners if not runner.invalid_because]
    for attempt in range(settings.attempts):
        _interleave(well, _lengthen(settings, 2**attempt), random.Random(settings.seed + attempt))
        drifts = [f"{r.name}: {why}" for r in well if (why := find_drift(r.samples_s, settings))]
        if not drifts:
            break
        log.info("latency at %dx%d: %s", size[1], size[0], "; ".join(drifts))
    for runner in well:
        runner.finish(settings, power)
    return {runner.name: runner.latency(size) for runner in runners}


def _lengthen(settings: BenchSettings, times: int) -> BenchSettings:
    """Up to the same limit: a pace that moves for a while weighs less in a longer measurement."""
    return replace(
        settings,
        min_time_s=min(settings.min_time_s * times, settings.max_time_s),
        min_samples=settings.min_samples * times,
    )


def find_doubt(samples_s: tuple[float, ...], settings: BenchSettings) -> str:
    """Why samples should not be believed, with the rule; "" when they can be."""
    if len(samples_s) < FEWEST:
        return (
            f"{len(samples_s)} samples in {settings.max_time_s:g} s, fewer than {FEWEST}: "
            "raise bench.max_time_s"
        )
    median = float(np.median(samples_s))
    fast = sum(sample <= _TOO_FAST * median for sample in samples_s)
    if fast > 0.01 * len(samples_s):
        return (
            f"{fast} of {len(samples_s)} samples are under a third of the median: "
            "the machine was busy, or calls do not block"
        )
    return find_drift(samples_s, settings)


def find_drift(samples_s: tuple[float, ...], settings: BenchSettings) -> str:
    """How far the machine's pace moved when that is over `max_drift`, else "".

    Nine samples are the fewest of which thirds have medians.
    """
    third = len(samples_s) // 3
    if third < 3:
        return ""
    first, last = float(np.median(samples_s[:third])), float(np.median(samples_s[-third:]))
    moved = max(first, last) / max(min(first, last), 1e-9) - 1
    if moved <= settings.max_drift:
        return ""
    return (
        f"unstable: median {first * 1e3:.3g} ms in the first third, {last * 1e3:.3g} ms in the "
        f"last ({moved:.0%} apart, bound {settings.max_drift:.0%})"
    )


@dataclass
class _Runner:
    """A session, its input and what has been measured of it."""

    name: str
    session: Session
    lr_NCHW: FloatArray
    cold_start_s: float = 0.0
    warmups: int = 0
    usual_s: float = 0.0  # of the latest uncounted call
    started_ns: int = 0  # the latest call
    samples_ns: list[int] = field(default_factory=list)
    starts_ns: list[int] = field(default_factory=list)
    spent_ns: int = 0
    invalid_because: str = ""
    end_to_end_s: float | None = None
    energy: Energy | None = None
    load_cost: LoadCost | None = None

    @property
    def samples_s(self) -> tuple[float, ...]:
        return tuple(sample * 1e-9 for sample in self.samples_ns)

    def call_ns(self) -> int:
        """Time one call; the output is given back outside the timed span."""
        start = perf_counter_ns()
        sr_NCHW = self.session.run(self.lr_NCHW)
        end = perf_counter_ns()
        del sr_NCHW
        self.started_ns = start
        return end - start

    def turn(self, turn_ns: int) -> None:
        """Calls for `turn_ns`, at least one counted."""
        if self.usual_s * 1e9 < turn_ns:
            self.call_ns()
        spent = calls = 0
        while spent < turn_ns and calls < _TURN_CALLS:
            sample = self.call_ns()
            self.samples_ns.append(sample)
            self.starts_ns.append(self.started_ns)
            spent += sample
            calls += 1
        self.spent_ns += spent

    def done(self, settings: BenchSettings) -> bool:
        spent_s, count = self.spent_ns * 1e-9, len(self.samples_ns)
        enough = spent_s >= settings.min_time_s and count >= settings.min_samples
        return enough or spent_s >= settings.max_time_s or count >= PLENTY

    def is_full(self, settings: BenchSettings) -> bool:
        return self.spent_ns * 1e-9 >= settings.max_time_s or len(self.samples_ns) >= 2 * PLENTY

    def finish(self, settings: BenchSettings, power: Source | None) -> None:
        """Look at what was measured, then measure what is not interleaved."""
        self.invalid_because = self.check_output() or find_doubt(self.samples_s, settings)
        if self.invalid_because:
            return
        self.end_to_end_s = self.measure_end_to_end()
        if power:
            # A meter that is read ten times a second needs a while, however short the settings.
            seconds = max(_METERED_S, 2 * settings.min_time_s)
            call = partial(self.session.run, self.lr_NCHW)
            self.energy = joules_per_frame(call, power, seconds)

    def check_output(self) -> str:
        """What is wrong with the session's output; "" when nothing is."""
        sr_NCHW = np.asarray(self.session.run(self.lr_NCHW))
        height, width = self.lr_NCHW.shape[2:]
        scale = sr_NCHW.shape[2] // height if sr_NCHW.ndim == 4 else 0
        wanted = (1, 3, scale * height, scale * width)
        if scale < 1 or sr_NCHW.shape != wanted:
            return f"output of shape {sr_NCHW.shape} for an input of shape {self.lr_NCHW.shape}"
        return "" if np.isfinite(sr_NCHW).all() else "output has values that are not finite"

    def measure_end_to_end(self) -> float:
        """What a caller with bytes waits for bytes: conversions to and from floats included."""
        image_NCHW = self.lr_NCHW if self.session.takes_uint8 else np.rint(self.lr_NCHW * 255)
        lr_HWC = np.ascontiguousarray(image_NCHW[0].transpose(1, 2, 0), dtype=np.uint8)
        scale = np.asarray(self.session.run(self.lr_NCHW)).shape[2] // len(lr_HWC)
        found: list[int] = []
        while len(found) < FEWEST or (sum(found) < _END_TO_END_NS and len(found) < _TURN_CALLS):
            start = perf_counter_ns()
            upscale(self.session, lr_HWC, scale=scale)
            found.append(perf_counter_ns() - start)
        return float(np.median(found)) * 1e-9

    def latency(self, size: tuple[int, int]) -> Latency:
        return Latency(
            size=size,
            samples_s=self.samples_s,
            warmup=self.warmups,
            cold_start_s=self.cold_start_s,
            invalid_because=self.invalid_because,
            joules_per_frame=self.energy.joules_per_frame if self.energy else None,
            power_from=self.energy.source if self.energy else "",
            at_s=tuple(round((s - self.starts_ns[0]) * 1e-9, 6) for s in self.starts_ns),
            end_to_end_s=self.end_to_end_s,
            load_s=self.load_cost.load_s if self.load_cost else None,
            memory_bytes=self.load_cost.memory_bytes if self.load_cost else None,
        )


def _warm_up(runner: _Runner, settings: BenchSettings) -> None:
    """The cold start, a look at the output, then runs until the pace is the usual one."""
    try:
        with measure_memory_rise() as bytes_more:
            runner.cold_start_s = runner.call_ns() * 1e-9
        if runner.load_cost and runner.load_cost.memory_bytes is not None:
            runner.load_cost.memory_bytes += sum(bytes_more)
        runner.invalid_because = runner.check_output()
    except Exception as error:  # one model's failure is a row of the report
        log.warning("%s: inference failed: %s", runner.name, error)
        runner.invalid_because = f"inference failed: {type(error).__name__}: {error}"
    if runner.invalid_because:
        return
    spent_s = 0.0
    while runner.warmups < settings.min_warmups or spent_s < settings.warmup_s:
        runner.usual_s = runner.call_ns() * 1e-9
        runner.warmups += 1
        # A call under a microsecond must not spin for the whole warm-up in Python alone.
        spent_s += max(runner.usual_s, 1e-5)


def _interleave(runners: list[_Runner], settings: BenchSettings, order: random.Random) -> None:
    """Turns in random order until each has enough samples; earlier samples are dropped."""
    for runner in runners:
        runner.samples_ns, runner.starts_ns, runner.spent_ns = [], [], 0
    turn_ns = int(settings.turn_s * 1e9)
    with _without_collector():
        while not all(runner.done(settings) for runner in runners):
            # Those that have enough go on beside the others, so that all are measured over the
            # same span; only what would take too long or too much memory stops.
            turns = [r for r in runners if not r.is_full(settings)]
            for runner in order.sample(turns, len(turns)):
                runner.turn(turn_ns)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed calls."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _input(session: Session, size: tuple[int, int], multiple: int, seed: int) -> FloatArray:
    """An image in the type that the session's model takes."""
    image = smooth_image(size, multiple, seed)
    return cast("FloatArray", (image * 255).astype(np.uint8)) if session.takes_uint8 else image


def smooth_image(size: tuple[int, int], multiple: int, seed: int) -> FloatArray:
    """A smooth random image, shape (1, 3, H, W), H and W padded up to `multiple`."""
    height, width = (side + -side % multiple for side in size)
    grid = np.random.default_rng(seed).random((3, 9, 9))
    rows, columns = np.linspace(0, 8, height), np.linspace(0, 8, width)
    knots = np.arange(9)
    wide = np.apply_along_axis(lambda line: np.interp(columns, knots, line), 2, grid)
    image = np.apply_along_axis(lambda line: np.interp(rows, knots, line), 1, wide)
    return np.ascontiguousarray(image[None], dtype=np.float32)
