"""Say whether the student may be shipped: gates, remarks, and what to ship for each target."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mipkd.core.errors import UsageError, nearest
from mipkd.core.evidence import Failure, Gate, Outcome, Verdict
from mipkd.core.measurement import Measurement
from mipkd.core.precision import QUANTIZED
from mipkd.core.records import QuantPlan
from mipkd.metrics.base import Metric, find_metric, list_metrics
from pipeline.bench.comparisons import (
    NOT_MEASURED,
    channel_shift,
    drop_by_image,
    find_reference,
    mean_of,
    simulated_targets,
    speedup_over_best,
    students,
    subject,
    valid_latency,
    valid_sizes,
)
from pipeline.bench.distillation_gain import (
    DistillationGain,
    TargetGain,
    compare_with,
    is_rival,
)
from pipeline.bench.stats import Estimate
from pipeline.config_values import as_usage_error
from pipeline.judge.recommendation import recommend

Bound = Annotated[float, Field(allow_inf_nan=False)] | Literal["off"]


class MetricBounds(BaseModel):
    """How much worse than the FP32 student a target may be by a metric, in the metric's unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_mean_drop: Bound = "off"  # mean over the test images
    max_worst_drop: Bound = "off"  # on the image that loses most


class GateConfig(BaseModel):
    """The bounds a student must keep on every target at every precision; "off" lifts one.

    The defaults are those of somebody who ships a student in its teacher's place. Quantisation
    may cost what nobody sees: 0.1 dB on the mean (MLPerf Mobile's EDSR loses 0.06 dB with
    training for INT8 and 0.18 without). No picture may be broken behind a good mean: 0.5 dB on
    the one that loses most. The student must beat plain bicubic, and be faster than its teacher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_mean_drop_db: Bound = 0.1  # PSNR-Y below the FP32 student, mean over the test images
    max_worst_drop_db: Bound = 0.5  # the same, on the image that loses most
    max_channel_shift: Bound = 1.0  # levels a channel is brighter or darker, mean, likewise
    min_gain_over_bicubic_db: Bound = 0.1  # PSNR-Y of the FP32 student, mean
    min_speedup_over_teacher: Bound = 1.0  # at every LR size, against its fastest float precision
    min_gain_retained: Bound = "off"  # share of the FP32 gain over each rival, where quantised
    metrics: dict[str, MetricBounds] = Field(default_factory=dict)  # by name, beside PSNR-Y

    @field_validator("metrics")
    @classmethod
    def _are_known(cls, bounds: dict[str, MetricBounds]) -> dict[str, MetricBounds]:
        for name in bounds:
            if name not in list_metrics():
                raise ValueError(f"unknown metric {name!r}; {nearest(name, list_metrics())}")
        return bounds


def read_gates(stated: dict[str, Any], where: str) -> GateConfig:
    """The bounds that a bundle states.

    Raises:
        UsageError: they are none.
    """
    try:
        return GateConfig.model_validate(stated)
    except ValidationError as error:
        wrong = as_usage_error(error, GateConfig)
        raise UsageError(f"{where}: gates: {wrong.what}", hint=wrong.hint) from error


def judge(
    config: GateConfig,
    measurements: Sequence[Measurement],
    failures: Sequence[Failure],
    plans: Sequence[QuantPlan] = (),
) -> Verdict:
    """FAIL if any gate fails, else INVALID if any could not be judged, else PASS."""
    gates = (
        *_judge_bicubic(config, measurements),
        *(gate for m in students(measurements) for gate in _judge_model(config, m, measurements)),
        *(gate for plan in _built(plans, failures) for gate in _judge_search(plan)),
        *_judge_gains(config, measurements, failures),
        *_judge_failures(config, measurements, failures),
    )
    return Verdict(
        outcome=overall(gates),
        gates=gates,
        remarks=tuple(_remarks(measurements)),
        recommended=recommend(measurements, gates, failures),
    )


def _judge_bicubic(config: GateConfig, measurements: Sequence[Measurement]) -> Iterator[Gate]:
    bound, name = config.min_gain_over_bicubic_db, "gain over bicubic"
    if bound == "off":
        return
    student = mean_of(find_reference(measurements, "student"))
    bicubic = mean_of(find_reference(measurements, "bicubic"))
    if student is None or bicubic is None:
        yield _invalid(name, "student", bound, "dB", "no score of the FP32 student or of bicubic")
        return
    gain = student - bicubic
    reason = f"mean PSNR-Y of the FP32 student {student:.3f} dB, of bicubic {bicubic:.3f} dB"
    yield Gate(name, "student", _passes(gain >= bound), gain, bound, "dB", reason)


def _judge_model(
    config: GateConfig, m: Measurement, measurements: Sequence[Measurement]
) -> Iterator[Gate]:
    """The gates of one target and precision."""
    if m.invalid_because:
        yield _invalid("measured", subject(m), 0.0, "", m.invalid_because)
        return
    for latency in m.latencies:
        if not valid_latency(m, latency.size):
            name = f"latency at {latency.size[1]}x{latency.size[0]}"
            yield _invalid(name, subject(m), 0.0, "", latency.invalid_because or "no samples")
    yield from _judge_drops(config, m, find_reference(measurements, "student"))
    yield from _judge_tint(config, m, find_reference(measurements, "student"))
    if not m.simulated:
        yield from _judge_speedup(config, m, measurements)


def _judge_drops(config: GateConfig, m: Measurement, base: Measurement | None) -> Iterator[Gate]:
    """What is lost against the FP32 student, on the mean and on the image that loses most."""
    psnr_y = MetricBounds(
        max_mean_drop=config.max_mean_drop_db, max_worst_drop=config.max_worst_drop_db
    )
    yield from _judge_drop(find_metric("psnr_y"), psnr_y, m, base, "")
    for name, bounds in config.metrics.items():
        metric = find_metric(name)
        yield from _judge_drop(metric, bounds, m, base, f" of {metric.title}")


def _judge_drop(
    metric: Metric, bounds: MetricBounds, m: Measurement, base: Measurement | None, of: str
) -> Iterator[Gate]:
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
            yield _invalid(name + of, subject(m), bound, metric.unit, why)
            continue
        on_mean = name == "mean drop"
        figure = statistics.fmean(drops.values()) if on_mean else drops[worst]
        reason = ("simulated here, " if m.simulated else "") + "against the FP32 student, "
        reason += f"mean of {len(drops)} images" if on_mean else f"on {worst}"
        well = _passes(figure <= bound)
        yield Gate(name + of, subject(m), well, figure, bound, metric.unit, reason)


def _judge_tint(config: GateConfig, m: Measurement, base: Measurement | None) -> Iterator[Gate]:
    """The channel that is furthest from the FP32 student's in brightness; PSNR-Y hardly sees it."""
    bound, found = config.max_channel_shift, channel_shift(m, base)
    if bound == "off" or found is None:  # figures of older runs hold no colours
        return
    figure, words = found
    reason = "simulated here, " if m.simulated else ""
    reason += f"{words}, against the FP32 student, mean of {len(m.scores)} images"
    yield Gate(
        "channel shift", subject(m), _passes(figure <= bound), figure, bound, "levels", reason
    )


def _built(plans: Sequence[QuantPlan], failures: Sequence[Failure]) -> list[QuantPlan]:
    """Without those of which no INT8 was built: they are judged as failures."""
    lost = {f.target for f in failures if (f.role, f.precision) == ("student", "int8")}
    return [plan for plan in plans if plan.target not in lost]


def _judge_search(plan: QuantPlan) -> Iterator[Gate]:
    """What the best INT8 that a search found, or a fixed recipe, loses on photos held out."""
    for name, figure, bound in (
        ("holdout drop", plan.drop_db, plan.max_drop_db),
        ("holdout worst drop", plan.worst_db, plan.max_worst_db),
    ):
        if figure is not None:
            reason = f"the best of INT8 with {plan.counted} float"
            if plan.fixed:
                reason = "the target's fixed recipe"
                reason += "; the student was trained on for it" if plan.tuned else ""
            well = _passes(figure <= bound)
            yield Gate(name, f"{plan.target} int8", well, figure, bound, "dB", reason)


def _judge_speedup(
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
    missing = [f"{size[1]}x{size[0]}" for size, pair in found.items() if not pair]
    if missing or not found:
        why = f"no valid latency of the teacher on {m.target}"
        why += f" at {', '.join(missing)}" if missing else ""
        yield _invalid(name, subject(m), bound, "x", why)
        return
    size, (ratio, precision) = min(
        ((size, pair) for size, pair in found.items() if pair), key=lambda item: item[1][0].value
    )
    reason = (
        f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}, against the teacher in {precision} "
        f"at LR {size[1]}x{size[0]}, the least of {len(found)} sizes"
    )
    yield _by_interval(name, subject(m), ratio, bound, "x", reason)


def _judge_gains(
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
        return _invalid(name, on, bound, unit, one.why_not or found.why_not)
    share, gain = one.retained, one.gain_db
    reason = (
        f"{'simulated here, ' if one.simulated else ''}95 % interval {share.low:.2f} to "
        f"{share.high:.2f}; {gain.value:+.3f} dB ({gain.low:+.3f} to {gain.high:+.3f}) "
        f"of {found.fp32_db.value:+.3f} in FP32, {one.images} images"
    )
    return _by_interval(name, on, share, bound, unit, reason)


def _remarks(measurements: Sequence[Measurement]) -> Iterator[str]:
    """What was only simulated; INT8 that runs in float, or may not be faster than one."""
    for target in simulated_targets(measurements):
        yield f"{target}: {NOT_MEASURED}"
    on = students(measurements)
    for m in (m for m in on if m.runs_in_float):
        yield (
            f"{m.target}: asked for {m.precision}, the runtime executes {m.executes}: it is not "
            "recommended"
        )
    for int8 in (m for m in on if m.executes == "int8"):
        floats = [m for m in on if m.target == int8.target]
        found = [(size, speedup_over_best(floats, int8, size)) for size in valid_sizes(int8)]
        slow = [
            f"{pair[0].value:.2f}x {pair[1]} ({pair[0].low:.2f} to {pair[0].high:.2f}) "
            f"at LR {size[1]}x{size[0]}"
            for size, pair in found
            if pair and pair[0].low <= 1.0
        ]
        if slow:
            than = "INT8 is not surely faster than a float precision"
            yield f"{int8.target}: {than}: {', '.join(slow)}"


def _judge_failures(
    config: GateConfig, measurements: Sequence[Measurement], failures: Sequence[Failure]
) -> Iterator[Gate]:
    for failure in failures:
        if is_rival(failure.role):
            continue  # no matter of the student's
        if failure.role == "teacher" and config.min_speedup_over_teacher == "off":
            continue  # nothing is judged by it
        why = f"{failure.stage} failed: {failure.what}"
        of = " of the teacher" if failure.role == "teacher" else ""
        yield _invalid("measured", f"{failure.target} {failure.precision}{of}", 0.0, "", why)
    lost = [failure for failure in failures if not is_rival(failure.role)]
    if not lost and not students(measurements):
        yield _invalid("measured", "student", 0.0, "", "no target was measured")


def _by_interval(
    name: str, subject: str, found: Estimate, bound: float, unit: str, reason: str
) -> Gate:
    """PASS above the bound, FAIL below it; an interval that holds the bound is inconclusive."""
    outcome = _passes(found.low >= bound)
    if found.low < bound <= found.high:
        outcome, reason = Outcome.INVALID, f"inconclusive: {reason}"
    return Gate(name, subject, outcome, found.value, bound, unit, reason)


def _invalid(name: str, subject: str, bound: float, unit: str, reason: str) -> Gate:
    return Gate(name, subject, Outcome.INVALID, None, bound, unit, reason)


def _passes(well: bool) -> Outcome:
    return Outcome.PASS if well else Outcome.FAIL


def overall(gates: Sequence[Gate]) -> Outcome:
    """FAIL if any fails, else INVALID if any could not be judged."""
    outcomes = [gate.outcome for gate in gates]
    for outcome in (Outcome.FAIL, Outcome.INVALID):
        if outcome in outcomes:
            return outcome
    return Outcome.PASS
