"""The figures of a run: medians, ratios, drops and sentences, computed from its evidence.

They stand in `results.json` for readers that do not have this program, which never reads them back.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mipkd.core.evidence import Evidence
from mipkd.core.health import remark
from mipkd.core.measurement import Kind, Latency, Measurement, Stream
from mipkd.core.names import BUNDLE, model_folder
from pipeline.bench.comparisons import (
    drop_by_image,
    find_against,
    find_reference,
    foretell_drop,
    frames_per_second,
    mean_of,
    scored_metrics,
    speedup,
    speedup_over_best,
)
from pipeline.bench.distillation_gain import DistillationGain, compare_with
from pipeline.bench.stats import Estimate, percentiles
from pipeline.report.curves import last_health, psnr_before
from pipeline.report.sentences import gain_sentence, verdict_sentence
from pipeline.report.wording import TO, as_size, megabytes, milliseconds, number, times

_COMPARED = ("bicubic", "student", "teacher")


@dataclass(frozen=True)
class Speedup(Estimate):
    """How many times as fast as another model, of interleaved medians."""

    against: str  # the precision of the other one


@dataclass(frozen=True)
class LatencyFigures:
    """Latency at one input size, with 95 % intervals."""

    size: tuple[int, int]  # LR height, width
    p50_ms: Estimate | None  # median
    p90_ms: Estimate | None  # 90th percentile
    p99_ms: Estimate | None  # 99th percentile; near the maximum when there are under 100 samples
    over_teacher: Speedup | None  # against the teacher's fastest float precision on this target
    over_fp32: Speedup | None  # against the same network in FP32 on this target
    invalid_because: str  # why the samples should not be believed; empty when they can be


@dataclass(frozen=True)
class StreamFigures:
    """Frames of a camera from bytes to bytes, with 95 % intervals."""

    frames_per_second: Estimate | None  # that came out
    age_p50_ms: Estimate | None  # median, from when a frame was due to when it was ready
    age_p99_ms: Estimate | None  # 99th percentile
    dropped: int  # frames that did not come out


@dataclass(frozen=True)
class QualityFigures:
    """One metric over all test images; a drop is what is lost against the same net in FP32."""

    mean: float  # over the images
    mean_drop: float | None  # null for references
    worst_drop: float | None  # on the image that loses most
    worst_image: str  # that image


@dataclass(frozen=True)
class ModelFigures:
    """The figures of one measurement."""

    role: str  # as in the measurement
    target: str  # as in the measurement
    precision: str  # as in the measurement
    # "measured": ran on that runtime; "emulated": so it did, on an emulated processor, and nothing
    # was timed; "simulated": another engine made the pixels, nothing was timed; "reference": what
    # others are held against.
    kind: Kind
    executes: str  # the precision that runs, where the runtime tells; else that asked for
    # Of the convolutions and matrix products, those that run in the precision asked for; null where
    # the runtime does not tell.
    share_as_asked: float | None
    latencies: tuple[LatencyFigures, ...]  # one entry an input size
    quality: dict[str, QualityFigures]  # by metric
    # Mean drop of PSNR-Y on these images that the search for INT8 foretold, from the squared error
    # that it found on photos; null where nothing was searched.
    foretold_drop: float | None
    stream: StreamFigures | None  # null where no frames were streamed


@dataclass(frozen=True)
class Shipping:
    """What to ship for a target."""

    target: str  # the target
    precision: str  # the precision; empty when nothing may be shipped
    summary: str  # its size, speed and quality in words
    file: str  # the model in the bundle, from the run's folder; empty when nothing may be shipped


@dataclass(frozen=True)
class HealthFigure:
    """Whether the distillation did what its name says, when it was last measured."""

    # reconstruction_error: mean absolute error of the teacher's features through the mixers over
    # their mean magnitude; teacher_share: of the mixed path's parts, those that ran the teacher's
    # blocks; body_gradient_share/LOSS: of the gradient on the student's blocks, that loss's.
    name: str
    value: float  # the figure
    remark: str  # what is bad about it; empty where nothing is


@dataclass(frozen=True)
class Figures:
    """All figures of a run."""

    sentence: str  # the verdict in words
    shipping: tuple[Shipping, ...]  # one entry a target
    # Mean PSNR-Y in dB over the test images of bicubic, of the student in FP32 and of the teacher,
    # those that there are; of LR frames without truth to the image of `tests.against`, without the
    # net whose own it is.
    compared: dict[str, float]
    models: tuple[ModelFigures, ...]  # one entry a measurement, in the same order
    gains: tuple[DistillationGain, ...]  # over each student that it was compared with
    gain_sentences: tuple[str, ...]  # the same in words
    # Mean validation PSNR-Y in dB of a student that started as its teacher's projection, before its
    # first step, and of bicubic, of a student that only inherited and of the teacher.
    before: dict[str, float]
    health: tuple[HealthFigure, ...]  # of the distillation; none where nothing is distilled


def compute_figures(evidence: Evidence) -> Figures:
    """All figures of a run."""
    curves = evidence.distilled.curves if evidence.distilled else None
    gains = tuple(compare_with(rival.name, evidence.measurements) for rival in evidence.rivals)
    models = tuple(_model(m, evidence) for m in evidence.measurements)
    health = last_health(curves) if curves else {}
    return Figures(
        sentence=verdict_sentence(evidence.verdict),
        shipping=_shipping(evidence, models),
        compared=_compared(evidence.measurements),
        models=models,
        gains=gains,
        gain_sentences=tuple(
            gain_sentence(gain, rival, evidence.student)
            for gain, rival in zip(gains, evidence.rivals, strict=True)
        ),
        before=psnr_before(curves) if curves else {},
        health=tuple(HealthFigure(name, v, remark(name, v)) for name, v in health.items()),
    )


def _model(m: Measurement, evidence: Evidence) -> ModelFigures:
    every = evidence.measurements
    return ModelFigures(
        role=m.role,
        target=m.target,
        precision=m.precision,
        kind=m.kind,
        executes=m.executes,
        share_as_asked=_share_as_asked(m),
        latencies=tuple(_latency(m, latency, every) for latency in m.latencies),
        quality={
            metric.name: _quality(m, find_reference(every, m.role), metric.name)
            for metric in scored_metrics([m])
        },
        foretold_drop=_foretold_drop(m, evidence),
        stream=_stream(m.stream) if m.stream else None,
    )


def _stream(stream: Stream) -> StreamFigures:
    if stream.invalid_because:
        return StreamFigures(None, None, None, stream.dropped)
    age = percentiles(stream.age_s)
    ages = (_in_ms(age.p50_s), _in_ms(age.p99_s))
    return StreamFigures(frames_per_second(stream), *ages, stream.dropped)


def _foretold_drop(m: Measurement, evidence: Evidence) -> float | None:
    """By the plan of its INT8 and its target's own FP32."""
    every = evidence.measurements
    plan = next((p for p in evidence.plans if p.target == m.target), None)
    if plan is None or plan.added_mse is None or (m.role, m.precision) != ("student", "int8"):
        return None
    own = (m.role, m.target, "fp32")
    base = next((one for one in every if (one.role, one.target, one.precision) == own), None)
    return foretell_drop(plan.added_mse, base or find_reference(every, m.role))


def _share_as_asked(m: Measurement) -> float | None:
    return m.kernels.get(m.precision, 0) / sum(m.kernels.values()) if m.kernels else None


def _latency(m: Measurement, latency: Latency, every: Sequence[Measurement]) -> LatencyFigures:
    found = percentiles(latency.samples_s) if latency.samples_s else None
    here = [one for one in every if one.target == m.target]
    fp32 = [one for one in here if (one.role, one.precision) == (m.role, "fp32") and one is not m]
    over_fp32 = speedup(fp32[0], m, latency.size) if fp32 else None
    teachers = [one for one in here if one.role == "teacher" != m.role]
    over_teacher = speedup_over_best(teachers, m, latency.size)
    return LatencyFigures(
        size=latency.size,
        p50_ms=_in_ms(found.p50_s) if found else None,
        p90_ms=_in_ms(found.p90_s) if found else None,
        p99_ms=_in_ms(found.p99_s) if found else None,
        over_teacher=_against(*over_teacher) if over_teacher else None,
        over_fp32=_against(over_fp32, "fp32") if over_fp32 else None,
        invalid_because=latency.invalid_because or m.invalid_because,
    )


def _in_ms(one: Estimate) -> Estimate:
    return Estimate(one.value * 1e3, one.low * 1e3, one.high * 1e3)


def _against(one: Estimate, precision: str) -> Speedup:
    return Speedup(one.value, one.low, one.high, precision)


def _quality(m: Measurement, base: Measurement | None, metric: str) -> QualityFigures:
    drops = drop_by_image(m, base, metric) if m is not base else {}
    worst = max(drops, key=lambda image: drops[image], default="")
    mean = mean_of(m, metric)
    return QualityFigures(
        mean=math.nan if mean is None else mean,
        mean_drop=statistics.fmean(drops.values()) if drops else None,
        worst_drop=drops.get(worst),
        worst_image=worst,
    )


def _compared(measurements: Sequence[Measurement]) -> dict[str, float]:
    own = find_against(measurements)
    roles = [role for role in _COMPARED if role != own]
    means = {role: mean_of(find_reference(measurements, role)) for role in roles}
    return {role: mean for role, mean in means.items() if mean is not None}


def _shipping(evidence: Evidence, models: Sequence[ModelFigures]) -> tuple[Shipping, ...]:
    found = []
    pairs = list(zip(evidence.measurements, models, strict=True))
    for one in evidence.verdict.recommended:
        wanted = ("student", one.target, one.precision)
        pair = next((p for p in pairs if (p[0].role, p[0].target, p[0].precision) == wanted), None)
        summary = _summary(*pair) if pair else ""
        file = _in_bundle(pair[0]) if pair else ""
        found.append(Shipping(one.target, one.precision, summary, file))
    return tuple(found)


def _summary(m: Measurement, figures: ModelFigures) -> str:
    """Such as "1.20 MB; 17.4 ms at LR 320×180, 3.41× as fast as the teacher; 32.04 dB"."""
    facts = [megabytes(m.size_bytes)]
    valid = (one for one in figures.latencies if not one.invalid_because)
    latency = max(valid, key=lambda one: math.prod(one.size), default=None)
    if latency:
        p50 = milliseconds(latency.p50_ms.value if latency.p50_ms else None)
        over = latency.over_teacher
        faster = f", {times(over.value)} as fast as the teacher" if over else ""
        facts.append(f"{p50} ms at LR {as_size(*latency.size)}{faster}")
    if m.stream and figures.stream and (rate := figures.stream.frames_per_second):
        facts.append(f"{rate.value:.1f} frames/s at LR {as_size(*m.stream.size)}")
    if "psnr_y" in figures.quality:
        facts.append(number(figures.quality["psnr_y"].mean, 2, " dB") + TO[m.against])
    return "; ".join(facts)


def _in_bundle(m: Measurement) -> str:
    """Where a bundle has the model that was measured."""
    return f"{BUNDLE}/{model_folder(m.target, m.precision)}/{m.file.name}" if m.file else ""
