"""What to do about a gate that could not be judged, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mipkd.core.evidence import Failure, Gate, Outcome, Verdict

_AGAIN = "the next run measures anew what is INVALID"
_LONGER = "measure longer, which measures anew: --set bench.min_time_s=2"
# What a reason says: what helps. The first that fits counts.
_HELP = (
    (r"throttled|limited to", f"let the board cool or choose another power mode; {_AGAIN}"),
    (r"busy machine", f"end other programs; {_AGAIN}"),
    (r"was busy", f"end other programs and {_LONGER}"),
    (r"unstable|apart", f"use an idle machine with fixed clocks and {_LONGER}"),
    (r"bench\.stream\.seconds", "stream it longer: --set bench.stream.seconds=60"),
    (r"bench\.stream\.fps", "ask for more: --set bench.stream.fps=60"),
    (r"no samples|bench\.max_time_s", "allow it longer: --set bench.max_time_s=60"),
    (r"output of shape|not finite|inference failed", "the model is broken there: see the log"),
    (r"no valid latency", "see the latency that is INVALID: this one follows from it"),
    (r"not better than bicubic|no gain", "give a teacher that is better than bicubic"),
    (r"on the device", "measure on the device: mipkd-pipeline kit, or --device"),
)


def advise(gate: Gate, failures: Sequence[Failure] = ()) -> str:
    """What helps; "" where the reason itself says so or nothing is known to help."""
    if gate.outcome is not Outcome.INVALID or re.search(r"would do|--\w", gate.reason):
        return ""
    for failure in failures:
        if failure.hint and gate.reason.endswith(failure.what):
            return failure.hint
    for pattern, what in _HELP:
        if re.search(pattern, gate.reason):
            return what
    if re.search(r"inconclusive: of a stream", gate.reason):
        return "stream it longer: --set bench.stream.seconds=60"
    if re.search(r"inconclusive|images", gate.reason):
        timed = gate.unit in ("x", "ms")
        return "measure longer: --set bench.min_time_s=5" if timed else "give more test images"
    return ""


def next_step(verdict: Verdict, failures: Sequence[Failure] = ()) -> str:
    """What helps with the first gate that keeps a verdict INVALID; "" with any other verdict."""
    if verdict.outcome is not Outcome.INVALID:
        return ""
    return next(filter(None, (advise(gate, failures) for gate in verdict.gates)), "")
