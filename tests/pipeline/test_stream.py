"""Frames at a camera's rate: which are dropped, how old they are, how many are in flight."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from mipkd.core import codec
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built
from mipkd.core.yuv import rgb_of_yuv
from pipeline.bench import stream_models
from pipeline.bench.comparisons import frames_per_second
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import join_parts, time_models
from pipeline.bench.power import Work
from pipeline.bench.stream import (
    CAMERA,
    Frames,
    StreamSettings,
    frames_of,
    make_process,
    run_stream,
)
from targets.base import ByteArray, Feature, FloatArray, Session, find

FRAME = np.zeros(6, np.uint8)
BENCH = BenchSettings(
    sizes=((8, 12), (4, 6)), warmup_s=0.01, min_time_s=0.01, min_samples=5, max_drift=20, max_busy=1
)
PATIENCE_S = 30.0


class Clock:
    """Time that only work passes, and a microsecond at each look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


@dataclass
class Slow:
    """Work of a fixed length on that clock; keeps which frames it saw."""

    clock: Clock
    seconds: float
    seen: list[int] = field(default_factory=list)

    def __call__(self, frame: ByteArray) -> ByteArray:
        self.seen.append(int(frame[0]))
        self.clock.now += self.seconds
        return frame


def streamed(slow: Slow, monkeypatch: pytest.MonkeyPatch, **settings: float) -> Frames:
    monkeypatch.setattr("pipeline.bench.stream.perf_counter", slow.clock)
    frames = [np.full(1, number, np.uint8) for number in range(256)]
    return run_stream(slow, frames, StreamSettings(**settings), 1)  # type: ignore[arg-type]


def test_of_frames_that_nobody_took_in_time_the_newest_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A camera of 100 frames a second, and 35 ms of work on each."""
    slow = Slow(Clock(), 0.035)
    found = streamed(slow, monkeypatch, fps=100, seconds=0.5)
    # At 35 ms the newest is frame 3, due at 30; at 70 it is 7, due just then; and so on.
    assert slow.seen == [0, 3, 7, 10, 14, 17, 21, 24, 28, 31, 35, 38, 42, 45, 49]
    assert found.given == 50
    assert found.age_s[:5] == pytest.approx([0.035, 0.040, 0.035, 0.040, 0.035], abs=1e-4)
    assert found.ready_s == pytest.approx(0.035 * np.arange(1, 16), abs=1e-3)


def test_a_longer_queue_keeps_more_and_older_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(Clock(), 0.035)
    found = streamed(slow, monkeypatch, fps=100, seconds=0.5, waiting=4)
    assert slow.seen[:4] == [0, 1, 4, 7]  # at 70 ms frames 4 to 7 wait
    assert found.age_s[4] == pytest.approx(0.035 * 5 - 0.11, abs=1e-4)
    assert found.given == 50


def test_the_rate_of_what_came_out_is_that_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    found = streamed(Slow(Clock(), 0.04), monkeypatch, fps=100, seconds=4)
    stream = measured(found, fps=100)
    rate = frames_per_second(stream)
    assert rate.value == pytest.approx(25, rel=0.01)
    assert rate.low <= rate.value <= rate.high < 26
    assert stream.dropped == 400 - len(found.age_s)
    none_dropped = streamed(Slow(Clock(), 0.04), monkeypatch, fps=0, seconds=1)
    assert none_dropped.given == len(none_dropped.age_s) == 25
    assert none_dropped.age_s == pytest.approx([0.04] * 25, abs=1e-4)


def measured(found: Frames, fps: float) -> stream_models.Stream:
    facts = (found.given, found.ready_s, found.age_s)
    return stream_models.Stream((4, 6), fps, "RGB in and out", 1, 1, *facts)


def test_no_frame_is_given_before_it_is_due() -> None:
    found = run_stream(lambda frame: frame, [FRAME], StreamSettings(fps=100, seconds=0.2), 1)
    due = np.array(found.ready_s) - found.age_s
    assert np.allclose(due * 100, np.rint(due * 100), atol=0.01)
    assert min(found.age_s) > 0
    assert found.given == 20


def test_as_many_frames_are_in_flight_as_are_asked_for() -> None:
    lock, together, active = threading.Lock(), threading.Event(), 0

    def process(frame: ByteArray) -> ByteArray:
        nonlocal active
        with lock:
            active += 1
            if active == 3:
                together.set()
        assert together.wait(PATIENCE_S), "three never ran at a time"
        with lock:
            active -= 1
        return frame

    found = run_stream(process, [FRAME], StreamSettings(fps=0, seconds=0.05), 3)
    assert len(found.age_s) == found.given >= 3


def test_a_frame_is_ready_when_those_before_it_are() -> None:
    second_done = threading.Event()

    def process(frame: ByteArray) -> ByteArray:
        if frame[0] == 0:
            assert second_done.wait(PATIENCE_S)
        else:
            second_done.set()
        return frame

    frames = [np.zeros(1, np.uint8), np.ones(1, np.uint8)]
    found = run_stream(process, frames, StreamSettings(fps=100, seconds=0.02, waiting=2), 2)
    assert found.given == 2
    assert found.ready_s[1] >= found.ready_s[0]


@pytest.mark.parametrize("in_flight", [1, 3])
def test_what_goes_wrong_with_a_frame_ends_the_stream(in_flight: int) -> None:
    def process(frame: ByteArray) -> ByteArray:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        run_stream(process, [FRAME], StreamSettings(fps=100, seconds=3600), in_flight)


class Repeat(Session):
    """Repeats pixels."""

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        return lr_NCHW.repeat(2, axis=2).repeat(2, axis=3)


@pytest.mark.parametrize("takes", ["yuv420", "rgb"])
@pytest.mark.parametrize("gives", ["yuv420", "rgb"])
def test_a_frame_goes_from_bytes_to_bytes(takes: str, gives: str) -> None:
    settings = StreamSettings(takes=takes, gives=gives)  # type: ignore[arg-type]
    picture = np.full((6, 10, 3), (200, 100, 50), np.uint8)
    (frame,) = frames_of([picture], settings)
    assert frame.nbytes == {"rgb": 180, "yuv420": 90}[takes]
    shown = make_process(Repeat(), settings, (6, 10), 2, 4)(frame)  # padded to 8 x 12
    assert shown.nbytes == {"rgb": 720, "yuv420": 360}[gives]
    back = shown if gives == "rgb" else rgb_of_yuv(shown, (12, 20), CAMERA)
    assert np.abs(back.astype(int) - (200, 100, 50)).max() <= 3


def null_model(role: str = "student") -> Built:
    return Built("null", "fp32", role, Path("none"), 1, scale=2, multiple=1)


def test_students_are_streamed_where_that_is_asked_for() -> None:
    target, models = find("null"), [null_model("teacher"), null_model()]
    assert [m.stream for m in stream_models.stream_models(target, models, BENCH)] == [None, None]
    asked = replace(BENCH, stream=StreamSettings(fps=200, seconds=0.1, waiting=64))
    parts = [run(target, models, asked) for run in (time_models, stream_models.stream_models)]
    teacher, student = join_parts(parts)
    assert teacher.stream is None
    assert student.stream is not None
    assert (student.stream.size, student.stream.given) == ((8, 12), 20)
    assert len(student.latencies) == 2
    assert codec.decode(Measurement, codec.encode(student)) == student
    off = replace(asked, stream=replace(asked.stream, seconds=0))
    assert not stream_models.streams(target, off)


def test_what_is_made_for_frames_per_second_is_streamed_unasked() -> None:
    target = find("openvino:throughput")
    assert Feature.FRAMES_IN_FLIGHT in target.features
    assert stream_models.streams(target, BENCH)
    assert not stream_models.streams(find("openvino"), BENCH)


@dataclass
class Meter:
    """Tells ten watts, or nothing without ever running what it is to meter."""

    name: str = "RAPL of a test"
    works: bool = True

    def mean_watts(self, work: Work) -> float | None:
        if self.works:
            work()
        return 10.0 if self.works else None


@pytest.mark.parametrize("works", [True, False])
def test_joules_are_of_the_whole_stream(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_models, "power_source", lambda: Meter(works=works))
    asked = replace(BENCH, stream=StreamSettings(fps=100, seconds=0.2, waiting=64))
    (found,) = stream_models.stream_models(find("null"), [null_model()], asked)
    assert found.stream is not None
    assert found.stream.given == 20
    if not works:
        assert (found.stream.joules_per_frame, found.stream.power_from) == (None, "")
        return
    assert found.stream.joules_per_frame is not None
    joules = found.stream.joules_per_frame * len(found.stream.age_s)
    assert 10 * 0.19 <= joules <= 10 * (found.stream.ready_s[-1] + PATIENCE_S)
    assert found.stream.power_from == "RAPL of a test"


def test_a_stream_that_cannot_be_believed_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    target = find("null")
    few = replace(BENCH, stream=StreamSettings(fps=10, seconds=0.3))
    (found,) = stream_models.stream_models(target, [null_model()], few)
    assert found.stream is not None
    assert "fewer than 5: raise bench.stream.seconds" in found.stream.invalid_because
    assert found.invalid_because == ""  # the latencies beside it may be believed
    assert found.doubt == found.stream.invalid_because

    class Hot(stream_models.Watch):
        throttled = "CPU throttled: cooling device 'cpu' rose to state 2"

    monkeypatch.setattr(stream_models, "Watch", Hot)
    asked = replace(BENCH, stream=StreamSettings(fps=200, seconds=0.1))
    (found,) = stream_models.stream_models(target, [null_model()], asked)
    assert found.stream is not None
    assert found.stream.invalid_because.startswith("CPU throttled")

    def refuse(self: object, built: Built) -> Session:
        raise RuntimeError("no such device")

    monkeypatch.setattr(type(target), "open", refuse)
    (found,) = stream_models.stream_models(target, [null_model()], asked)
    assert found.stream is not None
    assert "RuntimeError: no such device" in found.stream.invalid_because


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": -1},
        {"fps": 1001},
        {"seconds": 3601},
        {"fps": 1000, "seconds": 3600},
        {"size": [0, 8]},
        {"waiting": 0},
        {"takes": "nv12"},
        {"speed": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(StreamSettings).validate_python(wrong)
    if "speed" not in wrong:  # a newer file's
        with pytest.raises(codec.CodecError):
            codec.decode(StreamSettings, wrong)
