"""Whether figures that came from elsewhere can have been measured at all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from mipkd.core.measurement import Host, Latency, Measurement

_LONGEST_S = 86_400.0  # of one image
_MOST_BYTES = 2**50
_MOST_WATTS = 1e6
_LARGEST = 2**20  # LR pixels a side


def find_absurdity(m: Measurement) -> str:
    """The first figure that cannot be: not finite, negative or absurdly large; "" without one."""
    return next(_absurdities(m), "")


def _absurdities(m: Measurement) -> Iterator[str]:
    if not 0 <= m.size_bytes <= _MOST_BYTES:
        yield f"size_bytes: {m.size_bytes}"
    for name, count in m.kernels.items():
        if count < 0:
            yield f"kernels: {name}: {count}"
    for one in m.latencies:
        where = f"LR {one.size[1]}x{one.size[0]}"
        yield from (f"{where}: {what}" for what in _of_latency(one))
    if m.host:
        yield from _of_host(m.host)


def _of_latency(one: Latency) -> Iterator[str]:
    if not all(0 < side <= _LARGEST for side in one.size):
        yield "size"
    if not one.samples_s and not one.invalid_because:
        yield "no samples"
    seconds = {
        "samples_s": one.samples_s,
        "at_s": one.at_s,
        "cold_start_s": (one.cold_start_s,),
        "end_to_end_s": (one.end_to_end_s or 0.0,),
        "load_s": (one.load_s or 0.0,),
    }
    for name, values in seconds.items():
        if wrong := [value for value in values if not 0 <= value <= _LONGEST_S]:
            yield f"{name}: {wrong[0]} s"
    if one.samples_s and statistics.median(one.samples_s) == 0:
        yield "samples_s: median 0 s"
    joules, memory_bytes = one.joules_per_frame or 0.0, one.memory_bytes or 0
    if not (math.isfinite(joules) and 0 <= joules <= _MOST_WATTS * _LONGEST_S):
        yield f"joules_per_frame: {joules}"
    if not 0 <= memory_bytes <= _MOST_BYTES:
        yield f"memory_bytes: {memory_bytes}"
    if one.warmup < 0:
        yield f"warmup: {one.warmup}"


def _of_host(host: Host) -> Iterator[str]:
    if not 0 < host.cores < 2**20:
        yield f"host.cores: {host.cores}"
    if not 0 <= host.memory_bytes <= _MOST_BYTES:
        yield f"host.memory_bytes: {host.memory_bytes}"
