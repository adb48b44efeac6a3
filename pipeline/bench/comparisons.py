"""What a measurement is held against: the teacher, its own float precisions, the FP32 student."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mipkd.core.measurement import Latency, Measurement
from pipeline.bench.stats import Ratio, ratio_of_medians

REFERENCE = "reference"  # the target of figures that the others are held against
FLOATS = ("fp32", "bf16", "fp16")
NOT_MEASURED = "not measured on the device; its pixels were simulated on this machine"
_COLOURS = ("red", "green", "blue")

Size = tuple[int, int]  # LR height, width


def students(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The student on real targets."""
    return [m for m in measurements if m.role == "student" and m.target != REFERENCE]


def reference(measurements: Sequence[Measurement], role: str) -> Measurement | None:
    """The quality of "student" or "teacher" in FP32, or of "bicubic"."""
    found = (m for m in measurements if (m.role, m.target) == (role, REFERENCE))
    return next(found, None)


def subject(m: Measurement) -> str:
    """How gates and tables name a measurement."""
    return f"{m.target} {m.precision}"


def simulated(measurements: Sequence[Measurement]) -> list[str]:
    """The targets whose pixels come from another engine, and whose speed is not known."""
    return list(dict.fromkeys(m.target for m in measurements if m.simulated))


def at(m: Measurement, size: Size) -> Latency | None:
    """The latency at an LR size if it can be believed."""
    found = next((latency for latency in m.latencies if latency.size == size), None)
    usable = found and found.samples_s and not found.invalid_because and not m.invalid_because
    return found if usable else None


def valid_sizes(m: Measurement) -> list[Size]:
    """The LR sizes, smallest first, at which the latency can be believed."""
    return sorted(latency.size for latency in m.latencies if at(m, latency.size))


def speedup(slow: Measurement, fast: Measurement, size: Size) -> Ratio | None:
    """How many times as fast the second is; None unless both are valid at that size."""
    theirs, ours = at(slow, size), at(fast, size)
    return ratio_of_medians(theirs.samples_s, ours.samples_s) if theirs and ours else None


def speedup_over_best(
    slow: Sequence[Measurement], fast: Measurement, size: Size
) -> tuple[Ratio, str] | None:
    """The least speed-up over any of `slow` in a float precision, and which precision that is.

    None when one of them is not valid: it might have been the fastest.
    """
    floats = [m for m in slow if m.precision in FLOATS and m is not fast]
    ratios = [(speedup(m, fast, size), m.precision) for m in floats]
    found = [(ratio, precision) for ratio, precision in ratios if ratio]
    if len(found) < len(floats):
        return None
    return min(found, key=lambda pair: pair[0].value, default=None)


def mean_psnr_db(m: Measurement | None) -> float | None:
    """Mean PSNR-Y over the images; None without any."""
    return statistics.fmean(s.psnr_y_db for s in m.scores) if m and m.scores else None


def mean_ssim(m: Measurement | None) -> float | None:
    """Mean SSIM-Y over the images; None without any."""
    return statistics.fmean(s.ssim_y for s in m.scores) if m and m.scores else None


def drop_by_image(m: Measurement, base: Measurement | None) -> dict[str, float]:
    """PSNR-Y lost against `base` on each image in dB; empty unless both scored the same images."""
    theirs = {s.image: s.psnr_y_db for s in base.scores} if base else {}
    ours = {s.image: s.psnr_y_db for s in m.scores}
    if ours.keys() != theirs.keys():
        return {}
    return {image: theirs[image] - ours[image] for image in ours}


def tint(m: Measurement, base: Measurement | None) -> tuple[float, str] | None:
    """The channel that is furthest from `base` in brightness: levels, mean over the images, and in
    words.

    None unless both were scored on the same images, and with their colours.
    """
    theirs = {s.image: s.shift_rgb for s in base.scores} if base else {}
    ours = {s.image: s.shift_rgb for s in m.scores}
    pairs = [(a, b) for image, a in ours.items() if a and (b := theirs.get(image))]
    if not pairs or len(pairs) < len(ours) or ours.keys() != theirs.keys():
        return None
    shifts = [statistics.fmean(a[c] - b[c] for a, b in pairs) for c in range(len(_COLOURS))]
    shift, colour = max(zip(shifts, _COLOURS, strict=True), key=lambda found: abs(found[0]))
    return abs(shift), f"{colour} {shift:+.2f}"
