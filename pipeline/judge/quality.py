"""Gates on pixels: what the student loses to its teacher, to its own FP32, and has over bicubic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

from mipkd.core.evidence import Failure, Gate
from mipkd.core.images import ASSUMED_TRUTH_DB
from mipkd.core.measurement import Against, Measurement
from mipkd.core.precision import QUANTIZED
from mipkd.metrics.base import Metric, find_metric
from pipeline.bench.comparisons import (
    channel_shifts,
    drop_by_image,
    find_against,
    find_reference,
    gain_by_image,
    mean_of,
    subject,
)
from pipeline.bench.distillation_gain import (
    DistillationGain,
    TargetGain,
    compare_with,
    is_rival,
)
from pipeline.bench.stats import mean_over_images, ratio_of_means
from pipeline.judge.bounds import Bound, GateConfig, MetricBounds
from pipeline.judge.means import FEWEST_IMAGES, LIKELY, judge_mean
from pipeline.judge.outcomes import by_interval, invalid, passes

TO_TEACHER = "loss to the teacher"
_SHARE = "of its gain over bicubic"
_DISTANCE = "of bicubic's squared error to it"
_AGAINST: dict[Against, str] = {
    "truth": "against the FP32 student, ",
    "teacher": "against the FP32 student, by the teacher's image and a truth "
    f"{ASSUMED_TRUTH_DB:g} dB from it, ",
    "student": f"by the FP32 student's own image and a truth {ASSUMED_TRUTH_DB:g} dB from it, ",
}


def judge_bicubic(config: GateConfig, measurements: Sequence[Measurement]) -> Iterator[Gate]:
    """Whether the FP32 student is better than interpolation; by its own image nobody can tell."""
    bound, name = config.min_gain_over_bicubic_db, "gain over bicubic"
    against = find_against(measurements)
    if bound == "off" or against == "student":
        return
    student, bicubic = (find_reference(measurements, role) for role in ("student", "bicubic"))
    gains = gain_by_image(student, bicubic)
    if not gains:
        yield invalid(name, "student", bound, "dB", "no scores of the FP32 student or of bicubic")
        return
    lost = [-gain for gain in gains.values()]
    outcome, why = judge_mean(lost, -bound, sure=LIKELY)  # gains have no long tail below
    to = "" if against == "truth" else " to the teacher's image"
    what = f"mean PSNR-Y{to} of the FP32 student over that of bicubic"
    reason = f"{what}, {_interval(gains.values())}"
    gain = statistics.fmean(gains.values())
    yield Gate(name, "student", outcome, gain, bound, "dB", _because(why, reason))


def judge_pixels(
    config: GateConfig, m: Measurement, measurements: Sequence[Measurement]
) -> Iterator[Gate]:
    """What one target's pixels at one precision lose, to the teacher and to the FP32 student."""
    fp32 = find_reference(measurements, "student")
    yield from _judge_loss_to_teacher(config.max_loss_to_teacher, m, measurements)
    psnr_y = MetricBounds(
        max_mean_drop=config.max_mean_drop_db, max_worst_drop=config.max_worst_drop_db
    )
    yield from _judge_drop(find_metric("psnr_y"), psnr_y, m, fp32, "")
    for name, bounds in config.metrics.items():
        metric = find_metric(name)
        yield from _judge_drop(metric, bounds, m, fp32, f" of {metric.title}")
    yield from _judge_tint(config.max_channel_shift, m, fp32)


def _judge_loss_to_teacher(
    bound: Bound, m: Measurement, measurements: Sequence[Measurement]
) -> Iterator[Gate]:
    """The share of what the teacher has over bicubic that is lost, where a teacher was given.

    Whether it is under the bound is asked of `loss - bound * gain`, image by image: Fieller's
    question, which needs no ratio of one image.
    """
    if bound == "off" or m.against == "student":
        return
    if m.against == "teacher":
        yield _judge_distance(bound, m, measurements)
        return
    if not any(one.role == "teacher" for one in measurements):
        return
    teacher, bicubic = (find_reference(measurements, role) for role in ("teacher", "bicubic"))
    lost, gains = drop_by_image(m, teacher), gain_by_image(teacher, bicubic)
    if not lost or lost.keys() != gains.keys():
        why = "student, teacher and bicubic were not scored on the same images"
        yield invalid(TO_TEACHER, subject(m), bound, _SHARE, why)
        return
    if statistics.fmean(gains.values()) <= 0:
        why = "the teacher is not better than bicubic"
        yield invalid(TO_TEACHER, subject(m), bound, _SHARE, why)
        return
    outcome, why = judge_mean([lost[image] - bound * gains[image] for image in lost], 0.0)
    share = statistics.fmean(lost.values()) / statistics.fmean(gains.values())
    reason = _because(why, _simulated(m) + _three_means(lost, gains, bicubic))
    yield Gate(TO_TEACHER, subject(m), outcome, share, bound, _SHARE, reason)


def _judge_distance(bound: float, m: Measurement, measurements: Sequence[Measurement]) -> Gate:
    """The share of bicubic's squared error to the teacher's image that is left, of LR frames
    without truth: the geometric mean over images, which mean PSNRs show.

    Where the teacher is the best guess of the truth, its own error is uncorrelated with what other
    images are apart from it, and this share is that of its gain that is lost.
    """
    bicubic = find_reference(measurements, "bicubic")
    gains = gain_by_image(m, bicubic)
    if not gains or bound <= 0:
        why = "not scored on the same images as bicubic" if not gains else "no distance is so small"
        return invalid(TO_TEACHER, subject(m), bound, _DISTANCE, why)
    needed_db = -10 * math.log10(bound)
    outcome, why = judge_mean([needed_db - gain for gain in gains.values()], 0.0)
    mine, theirs = mean_of(m) or 0.0, mean_of(bicubic) or 0.0
    text = f"mean PSNR-Y to the teacher's image {mine:.3f} dB, bicubic {theirs:.3f}"
    if len(gains) > 1:
        found = mean_over_images(list(gains.values()))
        low, high = _as_share(found.high), _as_share(found.low)
        text += f"; 95 % interval {low:.3f} to {high:.3f}, {len(gains)} images"
    else:
        text += ", 1 image"
    share = _as_share(statistics.fmean(gains.values()))
    reason = _because(why, _simulated(m) + text)
    return Gate(TO_TEACHER, subject(m), outcome, share, bound, _DISTANCE, reason)


def _as_share(gain_db: float) -> float:
    """Of squared errors, from a difference of PSNRs."""
    return math.pow(10, -gain_db / 10)


def _three_means(
    lost: dict[str, float], gains: dict[str, float], bicubic: Measurement | None
) -> str:
    assert bicubic is not None, "gains are over it"
    base = statistics.fmean(s.psnr_y_db for s in bicubic.scores)
    teacher = base + statistics.fmean(gains.values())
    student = teacher - statistics.fmean(lost.values())
    text = f"mean PSNR-Y {student:.3f} dB, teacher {teacher:.3f}, bicubic {base:.3f}"
    if len(lost) < 2:
        return f"{text}, 1 image"
    share = ratio_of_means(list(lost.values()), list(gains.values()))
    return f"{text}; 95 % interval {share.low:.3f} to {share.high:.3f}, {len(lost)} images"


def _judge_drop(
    metric: Metric, bounds: MetricBounds, m: Measurement, base: Measurement | None, of: str
) -> Iterator[Gate]:
    """What is lost against the FP32 student, on the mean and on the image that loses most."""
    drops = drop_by_image(m, base, metric.name)
    worst = max(drops, key=lambda image: drops[image], default="")
    for name, bound in (
        ("mean drop", bounds.max_mean_drop),
        ("worst drop", bounds.max_worst_drop),
    ):
        if bound == "off":
            continue
        if not drops:
            why = "not scored on the test images of the FP32 student"
            why += f", which need {metric.least_side} pixels a side" * (metric.least_side > 1)
            yield invalid(name + of, subject(m), bound, metric.unit, why)
            continue
        reason, why = _simulated(m) + _AGAINST[m.against], ""
        if name == "mean drop":
            figure = statistics.fmean(drops.values())
            outcome, why = judge_mean(list(drops.values()), bound)
            reason += _interval(drops.values())
        else:
            figure, outcome = drops[worst], passes(drops[worst] <= bound)
            reason += f"on {worst}"
        reason = _because(why, reason)
        yield Gate(name + of, subject(m), outcome, figure, bound, metric.unit, reason)


def _judge_tint(bound: Bound, m: Measurement, base: Measurement | None) -> Iterator[Gate]:
    """The channel that is furthest from the FP32 student's in brightness; PSNR-Y hardly sees it."""
    if bound == "off":
        return
    by_colour = channel_shifts(m, base)
    if not by_colour:  # figures of older runs hold no colours
        return
    colour = max(by_colour, key=lambda c: abs(statistics.fmean(by_colour[c])))
    shifts, shift = by_colour[colour], statistics.fmean(by_colour[colour])
    outcome, why = judge_mean([s if shift >= 0 else -s for s in shifts], bound)
    reason = f"{_simulated(m)}{colour} {shift:+.2f}, against the FP32 student, {_interval(shifts)}"
    reason = _because(why, reason)
    yield Gate("channel shift", subject(m), outcome, abs(shift), bound, "levels", reason)


def judge_gains(
    config: GateConfig, measurements: Sequence[Measurement], failures: Sequence[Failure]
) -> Iterator[Gate]:
    """What is left, after quantisation, of the gain over each rival that there is one over."""
    bound = config.min_gain_retained
    if bound == "off":
        return
    roles = [m.role for m in measurements] + [f.role for f in failures]
    for rival in dict.fromkeys(role for role in roles if is_rival(role)):
        found = compare_with(rival, measurements)
        if found.fp32_db and found.fp32_db.value <= 0:
            continue
        for one in (one for one in found.on if one.precision in QUANTIZED):
            yield _judge_gain(f"gain retained over {rival}", one, found, bound)


def _judge_gain(name: str, one: TargetGain, found: DistillationGain, bound: float) -> Gate:
    on, unit = f"{one.target} {one.precision}", "of FP32"
    if not (one.retained and one.gain_db and found.fp32_db):
        return invalid(name, on, bound, unit, one.why_not or found.why_not)
    if one.images < FEWEST_IMAGES:
        why = f"inconclusive: {one.images} images, at least {FEWEST_IMAGES} are needed"
        return invalid(name, on, bound, unit, why)
    share, gain = one.retained, one.gain_db
    reason = (
        f"{'simulated here, ' if one.simulated else ''}95 % interval {share.low:.2f} to "
        f"{share.high:.2f}; {gain.value:+.3f} dB ({gain.low:+.3f} to {gain.high:+.3f}) "
        f"of {found.fp32_db.value:+.3f} in FP32, {one.images} images"
    )
    return by_interval(name, on, share, bound, unit, reason)


def _interval(values: Iterable[float]) -> str:
    """The mean's interval and the number of images, in words."""
    figures = list(values)
    if len(figures) < 2:
        return f"{len(figures)} image"
    found = mean_over_images(figures)
    return f"95 % interval {found.low:+.3f} to {found.high:+.3f}, {len(figures)} images"


def _because(why: str, reason: str) -> str:
    return ": ".join(filter(None, (why, reason)))


def _simulated(m: Measurement) -> str:
    return f"{m.kind} here, " if m.simulated else ""
