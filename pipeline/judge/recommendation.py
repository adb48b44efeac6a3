"""What to ship for each target, of what passed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mipkd.core.evidence import Failure, Gate, Outcome, Recommendation
from mipkd.core.measurement import Measurement
from pipeline.bench.comparisons import (
    Size,
    frames_per_second,
    mean_of,
    p50_s,
    speedup,
    students,
    subject,
    valid_sizes,
    valid_stream,
    why_not_measured,
)
from pipeline.bench.stats import Estimate

_FASTEST = "the fastest that passes every gate"


def recommend(
    measurements: Sequence[Measurement], gates: Sequence[Gate], failures: Sequence[Failure] = ()
) -> tuple[Recommendation, ...]:
    """For each target the fastest precision that passes all its gates: in frames per second where
    every one's were taken as fast as it goes, else by the median at the largest LR size.

    A quantised model of which the runtime says that it runs in float is none of them.

    Of those whose speed cannot be told apart from the fastest one's, the one with the highest
    PSNR: a quantised model that is not faster is not worth its loss.
    """
    on = students(measurements)
    lost = [f.target for f in failures if f.role == "student"]
    targets = dict.fromkeys([m.target for m in on] + lost)
    return tuple(_recommend_for(t, [m for m in on if m.target == t], gates) for t in targets)


def _recommend_for(target: str, on: Sequence[Measurement], gates: Sequence[Gate]) -> Recommendation:
    if any(m.simulated for m in on):
        return Recommendation(target, "", why_not_measured(on[0]), simulated=True)
    stopped = {gate.subject: gate for gate in gates if gate.outcome is not Outcome.PASS}
    if "student" in stopped:
        gate = stopped["student"]
        return Recommendation(target, "", f"{gate.name} {gate.outcome.value}: {gate.reason}")
    floats = [m for m in on if m.runs_in_float]
    passing = [m for m in on if subject(m) not in stopped and valid_sizes(m) and m not in floats]
    common = set.intersection(*(set(valid_sizes(m)) for m in passing)) if passing else set()
    if not common:
        but = "".join(f"; {m.precision} runs in {m.executes}" for m in floats)
        return Recommendation(target, "", f"no precision passes all its gates{but}")
    size = max(common, key=math.prod)
    fastest, tied = _find_fastest(passing, size)
    best = max(tied, key=lambda m: (mean_of(m) or 0.0, m is fastest))
    if best is fastest:
        others = " and ".join(m.precision for m in tied if m is not best)
        why = f"as fast as {others}, with no lower PSNR" if others else _FASTEST
        return Recommendation(target, best.precision, why)
    why = f"as fast as {fastest.precision}, with a higher PSNR"
    return Recommendation(target, best.precision, why)


def _find_fastest(
    passing: Sequence[Measurement], size: Size
) -> tuple[Measurement, list[Measurement]]:
    """The fastest, and all that cannot be told apart from it."""
    rates = [rate for m in passing if (rate := _rate(m))]
    if len(rates) == len(passing):
        most = max(rates, key=lambda rate: rate.value)
        pairs = zip(passing, rates, strict=True)
        return passing[rates.index(most)], [m for m, rate in pairs if rate.high >= most.low]
    fastest = min(passing, key=lambda m: p50_s(m, size) or math.inf)
    return fastest, [m for m in passing if (r := speedup(m, fastest, size)) and r.low <= 1.0]


def _rate(m: Measurement) -> Estimate | None:
    """Frames per second, where they were taken as fast as it goes."""
    stream = valid_stream(m)
    return frames_per_second(stream) if stream and not stream.fps else None
