"""What a measurement is held against: the teacher, its own float precisions, the FP32 student."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import numpy as np

from mipkd.core.images import ASSUMED_TRUTH_DB, UNSEEN_DB, mse_of, psnr_lost, psnr_of
from mipkd.core.measurement import REFERENCE, Against, Latency, Measurement, Stream
from mipkd.core.precision import FLOATS
from mipkd.metrics.base import Metric, list_metrics
from pipeline.bench.stats import Estimate, rate_per_second, ratio_of_medians

NOT_MEASURED = "not measured on the device; its pixels were simulated on this machine"
RAN_EMULATED = (
    "ran on an emulated processor: its pixels are the runtime's own, its times mean nothing"
)
_COLOURS = ("red", "green", "blue")

Size = tuple[int, int]  # LR height, width


def students(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The student on real targets."""
    return [m for m in measurements if m.role == "student" and m.target != REFERENCE]


def find_against(measurements: Sequence[Measurement]) -> Against:
    """What their images were scored against."""
    return next((m.against for m in measurements if m.scores), "truth")


def find_reference(measurements: Sequence[Measurement], role: str) -> Measurement | None:
    """The quality of "student" or "teacher" in FP32, or of "bicubic"."""
    found = (m for m in measurements if (m.role, m.target) == (role, REFERENCE))
    return next(found, None)


def subject(m: Measurement) -> str:
    """How gates and tables name a measurement."""
    return f"{m.target} {m.precision}"


def simulated_targets(measurements: Sequence[Measurement]) -> list[str]:
    """The targets whose pixels come from another engine, and whose speed is not known."""
    return list(dict.fromkeys(m.target for m in measurements if m.kind == "simulated"))


def emulated_targets(measurements: Sequence[Measurement]) -> list[str]:
    """The targets that ran on an emulated processor, and whose speed is not known."""
    return list(dict.fromkeys(m.target for m in measurements if m.kind == "emulated"))


def why_not_measured(m: Measurement) -> str:
    """Why its speed is not known, where not the device itself made its pixels."""
    return RAN_EMULATED if m.kind == "emulated" else NOT_MEASURED


def valid_latency(m: Measurement, size: Size) -> Latency | None:
    """The latency at an LR size if it can be believed."""
    found = next((latency for latency in m.latencies if latency.size == size), None)
    usable = found and found.samples_s and not found.invalid_because and not m.invalid_because
    return found if usable else None


def valid_sizes(m: Measurement) -> list[Size]:
    """The LR sizes, smallest first, at which the latency can be believed."""
    return sorted(latency.size for latency in m.latencies if valid_latency(m, latency.size))


def valid_stream(m: Measurement) -> Stream | None:
    """The frames of a camera if they can be believed."""
    return m.stream if m.stream and not m.stream.invalid_because else None


def frames_per_second(stream: Stream) -> Estimate:
    """Frames that came out a second; the camera's own rate where none was dropped.

    A rate that the model could not keep up is that of its outputs from the first to the last.
    """
    if stream.fps and not stream.dropped:
        return Estimate(stream.fps, stream.fps, stream.fps)
    return rate_per_second(stream.ready_s)


def p50_s(m: Measurement, size: Size | None) -> float | None:
    """The median latency at an LR size; None where it cannot be believed."""
    found = valid_latency(m, size) if size else None
    return statistics.median(found.samples_s) if found else None


def speedup(slow: Measurement, fast: Measurement, size: Size) -> Estimate | None:
    """How many times as fast the second is; None unless both are valid at that size."""
    theirs, ours = valid_latency(slow, size), valid_latency(fast, size)
    return ratio_of_medians(theirs.samples_s, ours.samples_s) if theirs and ours else None


def speedup_over_best(
    slow: Sequence[Measurement], fast: Measurement, size: Size
) -> tuple[Estimate, str] | None:
    """The least speed-up over any of `slow` in a float precision, and which precision that is.

    None when one of them is not valid: it might have been the fastest.
    """
    floats = [m for m in slow if m.precision in FLOATS and m is not fast]
    ratios = [(speedup(m, fast, size), m.precision) for m in floats]
    found = [(ratio, precision) for ratio, precision in ratios if ratio]
    if len(found) < len(floats):
        return None
    return min(found, key=lambda pair: pair[0].value, default=None)


def mean_of(m: Measurement | None, metric: str = "psnr_y") -> float | None:
    """Mean of a metric over the images; None without any."""
    found = _by_image(m, metric).values()
    return statistics.fmean(found) if found else None


def scored_metrics(measurements: Sequence[Measurement]) -> list[Metric]:
    """The metrics that any of them was scored by and that this program knows."""
    found = {name for m in measurements for score in m.scores for name in score.metrics}
    return [metric for name, metric in list_metrics().items() if name in found]


def drop_by_image(
    m: Measurement | None, base: Measurement | None, metric: str = "psnr_y"
) -> dict[str, float]:
    """By how much each image is worse than with `base`, in the metric's unit.

    Empty unless both scored the same images by it, against the same. Of LR frames without truth dB
    of PSNR are those that a truth as far away as `ASSUMED_TRUTH_DB` would show.
    """
    assumed = m is not None and m.against != "truth" and metric.startswith("psnr")
    loss = _lost_to_truth if assumed else list_metrics()[metric].loss
    return _compare_images(m, base, metric, loss)


def _compare_images(
    m: Measurement | None,
    base: Measurement | None,
    metric: str,
    loss: Callable[[float, float], float],
) -> dict[str, float]:
    ours, theirs = _by_image(m, metric), _by_image(base, metric)
    if not (m and base) or ours.keys() != theirs.keys() or m.against != base.against:
        return {}
    return {image: loss(ours[image], theirs[image]) for image in ours}


def _lost_to_truth(psnr_db: float, base_db: float) -> float:
    """By how many dB one of two images is further from a truth that nobody has, where their
    distances to a net's image are known: their errors and that net's own are taken to add up."""
    return psnr_of(_mse_to_truth(base_db)) - psnr_of(_mse_to_truth(psnr_db))


def _mse_to_truth(psnr_db: float) -> float:
    return mse_of(psnr_db) + mse_of(ASSUMED_TRUTH_DB)


def foretell_drop(added_mse: float, base: Measurement | None) -> float | None:
    """The mean PSNR-Y in dB that so much more squared error costs the images that `base` scored.

    The better an image is upscaled, the more dB the same noise costs it: a test set may lose twice
    what other photos lose.
    """
    psnrs = _by_image(base, "psnr_y").values()
    error_of = _mse_to_truth if base and base.against != "truth" else mse_of
    errors = np.array([error_of(min(psnr_db, UNSEEN_DB)) for psnr_db in psnrs])
    return float(psnr_lost(added_mse, errors).mean()) if len(errors) else None


def _by_image(m: Measurement | None, metric: str) -> dict[str, float]:
    return {s.image: s.metrics[metric] for s in m.scores if metric in s.metrics} if m else {}


def gain_by_image(m: Measurement | None, base: Measurement | None) -> dict[str, float]:
    """By how many dB of PSNR-Y each image is better than with `base`; empty unless both scored the
    same images, against the same."""
    return _compare_images(m, base, "psnr_y", lambda ours, theirs: ours - theirs)


def channel_shifts(m: Measurement, base: Measurement | None) -> dict[str, list[float]]:
    """By how many levels each channel of each image is brighter than with `base`, by colour.

    Empty unless both were scored on the same images, and with their colours.
    """
    theirs = {s.image: s.shift_rgb for s in base.scores} if base else {}
    ours = {s.image: s.shift_rgb for s in m.scores}
    pairs = [(a, b) for image, a in ours.items() if a and (b := theirs.get(image))]
    if not pairs or len(pairs) < len(ours) or ours.keys() != theirs.keys():
        return {}
    return {colour: [a[c] - b[c] for a, b in pairs] for c, colour in enumerate(_COLOURS)}


def channel_shift(m: Measurement, base: Measurement | None) -> tuple[float, str] | None:
    """The channel that is furthest from `base` in brightness: levels, mean over the images, and in
    words; None where colours are not known."""
    means = {colour: statistics.fmean(one) for colour, one in channel_shifts(m, base).items()}
    if not means:
        return None
    colour = max(means, key=lambda c: abs(means[c]))
    return abs(means[colour]), f"{colour} {means[colour]:+.2f}"
