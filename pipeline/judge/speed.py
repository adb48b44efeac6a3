"""Gates on speed and room: faster than the teacher, and within what the device has for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.measurement import Latency, Measurement, Stream
from pipeline.bench.comparisons import (
    Size,
    frames_per_second,
    p50_s,
    speedup_over_best,
    students,
    subject,
    valid_latency,
    valid_sizes,
    why_not_measured,
)
from pipeline.bench.stats import Estimate, percentiles
from pipeline.judge.bounds import GateConfig
from pipeline.judge.outcomes import by_interval, invalid, passes

_MEGA = 1e6


def judge_speedup(
    config: GateConfig, m: Measurement, measurements: Sequence[Measurement]
) -> Iterator[Gate]:
    """The least speed-up over the teacher's fastest float precision, of all sizes measured.

    Every size counts: nobody knows yet which one the device will see. The interval decides; one
    that holds the bound inside is inconclusive, which is INVALID.
    """
    bound, name = config.min_speedup_over_teacher, "speed-up over teacher"
    if bound == "off" or not any(t.role == "teacher" for t in measurements):
        return
    teachers = [t for t in measurements if (t.role, t.target) == ("teacher", m.target)]
    found = {size: speedup_over_best(teachers, m, size) for size in valid_sizes(m)}
    missing = [_size(size) for size, pair in found.items() if not pair]
    if not found:
        why = f"no valid latency of the student: {m.doubt or 'nothing was timed'}"
        yield invalid(name, subject(m), bound, "x", why)
        return
    if missing:
        doubts = {one.doubt for one in teachers if one.doubt} or {"it was not timed there"}
        why = f"no valid latency of the teacher on {m.target} at {', '.join(missing)}"
        yield invalid(name, subject(m), bound, "x", f"{why}: {'; '.join(sorted(doubts))}")
        return
    size, (ratio, precision) = min(
        ((size, pair) for size, pair in found.items() if pair), key=lambda item: item[1][0].value
    )
    reason = (
        f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}, against the teacher in {precision} "
        f"at LR {_size(size)}, the least of {len(found)} sizes"
    )
    yield by_interval(name, subject(m), ratio, bound, "x", reason)


@dataclass(frozen=True)
class LimitGates:
    """What a device has time and room for, as gates of each model and of each target's best."""

    of_models: tuple[Gate, ...] = ()
    of_targets: tuple[Gate, ...] = ()  # those of the one that keeps most of them


def judge_limits(
    config: GateConfig, measurements: Sequence[Measurement], stopped: Collection[str]
) -> LimitGates:
    """Latency, frames per second, size and memory; `stopped` are subjects that another gate stops.

    One precision that keeps them all is enough to be shipped, so that a target's verdict is that of
    its best. A target that was only simulated has a size, and no time that could be judged.
    """
    on = students(measurements)
    every, chosen = list[Gate](), list[Gate]()
    for target in dict.fromkeys(m.target for m in on):
        models = [(m, tuple(_judge_model(config, m))) for m in on if m.target == target]
        if not any(gates for _, gates in models):
            continue
        every += [gate for _, gates in models for gate in gates]
        _, best = min(models, key=lambda model: _rank(model[0], model[1], stopped))
        of = f"; the best of {len(models)} precisions" if len(models) > 1 else ""
        chosen += [replace(gate, reason=gate.reason + of) for gate in best]
    return LimitGates(tuple(every), tuple(chosen))


def _rank(
    m: Measurement, gates: Sequence[Gate], stopped: Collection[str]
) -> tuple[bool, int, int, float]:
    """Those that pass all else first, then by what they miss, then by their speed."""
    outcomes = [gate.outcome for gate in gates]
    size = max(valid_sizes(m), key=math.prod, default=None)
    return (
        subject(m) in stopped or m.runs_in_float,
        outcomes.count(Outcome.FAIL),
        outcomes.count(Outcome.INVALID),
        p50_s(m, size) or math.inf,
    )


def _judge_model(config: GateConfig, m: Measurement) -> Iterator[Gate]:
    measured = [latency.size for latency in m.latencies]
    size = config.size or max(measured, key=math.prod, default=(0, 0))
    latency, why = valid_latency(m, size), _why_not(m, size)
    if (bound := config.max_latency_ms) != "off":
        yield _judge_latency(bound, m, latency, why)
    if (bound := config.min_fps) != "off":
        yield _judge_fps(bound, m, size, why)
    if (bound := config.max_size_mb) != "off":
        size_mb = m.size_bytes / _MEGA
        well = passes(size_mb <= bound)
        yield Gate("size of the model", subject(m), well, size_mb, bound, "MB", "of its files")
    if (bound := config.max_memory_mb) != "off":
        yield _judge_memory(bound, m, next((o for o in m.latencies if o.size == size), None), why)


def _judge_latency(bound: float, m: Measurement, latency: Latency | None, why: str) -> Gate:
    """The interval of the p90 decides."""
    if latency is None:
        return invalid("latency", subject(m), bound, "ms", why)
    p90 = percentiles(latency.samples_s).p90_s
    value, low, high = (1e3 * s for s in (p90.value, p90.low, p90.high))
    reason = f"p90 at LR {_size(latency.size)}, 95 % interval {low:.2f} to {high:.2f}"
    outcome = passes(high <= bound)
    if low <= bound < high:
        outcome, reason = Outcome.INVALID, f"inconclusive: {reason}"
    return Gate("latency", subject(m), outcome, value, bound, "ms", reason)


def _judge_fps(bound: float, m: Measurement, size: Size, why: str) -> Gate:
    """By a stream at that size where there is one, else by the median latency."""
    name = "frames per second"
    if m.stream and m.stream.size == size:
        return _judge_stream(name, bound, m, m.stream)
    latency = valid_latency(m, size)
    if latency is None:
        return invalid(name, subject(m), bound, "fps", why)
    p50 = percentiles(latency.samples_s).p50_s
    fps = Estimate(1 / p50.value, 1 / p50.high, 1 / p50.low)
    reason = (
        f"by the median latency at LR {_size(latency.size)}, 95 % interval {fps.low:.1f} to "
        f"{fps.high:.1f}"
    )
    return by_interval(name, subject(m), fps, bound, "fps", reason)


def _judge_stream(name: str, bound: float, m: Measurement, stream: Stream) -> Gate:
    if stream.invalid_because:
        return invalid(name, subject(m), bound, "fps", f"stream: {stream.invalid_because}")
    if not stream.dropped and 0 < stream.fps < bound:
        why = f"the stream's camera gave {stream.fps:g} frames per second, and all came out"
        return invalid(name, subject(m), bound, "fps", f"{why}: raise bench.stream.fps")
    fps = frames_per_second(stream)
    reason = (
        f"of a stream at LR {_size(stream.size)}, {stream.in_flight} in flight, "
        f"{stream.dropped} of {stream.given} frames dropped; 95 % interval {fps.low:.1f} to "
        f"{fps.high:.1f}"
    )
    return by_interval(name, subject(m), fps, bound, "fps", reason)


def _judge_memory(bound: float, m: Measurement, latency: Latency | None, why: str) -> Gate:
    """What a GPU or an NPU holds of its own is not in it."""
    if latency is None or latency.memory_bytes is None:
        why = why or "the system does not tell the process's memory"
        return invalid("memory", subject(m), bound, "MB", why)
    used_mb = latency.memory_bytes / _MEGA
    reason = f"added to the process by loading and running up to LR {_size(latency.size)}"
    return Gate("memory", subject(m), passes(used_mb <= bound), used_mb, bound, "MB", reason)


def _why_not(m: Measurement, size: Size) -> str:
    """Why there is no latency at that size; "" where it can be believed."""
    if valid_latency(m, size):
        return ""
    if m.simulated or not m.latencies:
        return why_not_measured(m) if m.simulated else "nothing was timed"
    if m.invalid_because:
        return m.invalid_because
    found = next((one for one in m.latencies if one.size == size), None)
    if found is None:
        return f"LR {_size(size)} was not measured; give --size {_size(size)} to the run"
    return f"at LR {_size(size)}: {found.invalid_because or 'no samples'}"


def _size(size: Size) -> str:
    return f"{size[1]}x{size[0]}"
