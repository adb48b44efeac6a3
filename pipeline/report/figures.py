"""From a run's evidence to `results.json`, and back."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence, Gate, Outcome, Recommendation, Verdict
from mipkd.core.health import remark
from mipkd.core.measurement import Latency, Measurement
from mipkd.core.records import (
    Distilled,
    FloatLayer,
    Model,
    PatchSet,
    Photos,
    QuantPlan,
    Rival,
    TestSet,
)
from pipeline.bench.comparisons import (
    REFERENCE,
    drop_by_image,
    mean_psnr_db,
    mean_ssim,
    reference,
    speedup,
    speedup_over_best,
)
from pipeline.bench.distillation_gain import over
from pipeline.bench.stats import Ratio, percentiles
from pipeline.report import schema as s
from pipeline.report.charts import before, last_health
from pipeline.report.gain_tables import as_interval, gain_result, sentence
from pipeline.report.wording import as_size, megabytes, milliseconds, number, times

P = TypeVar("P", bound=s._Part)


def collect(evidence: Evidence, out: Path) -> s.Results:
    """All figures of a run; `out` is the report's folder, in the run's."""
    measurements = [_measurement(m, evidence.measurements) for m in evidence.measurements]
    recommended = [_shipping(r, evidence.measurements, out) for r in evidence.verdict.recommended]
    return s.Results(
        schema_version=s.SCHEMA_VERSION,
        run=s.RunFacts(
            name=evidence.name,
            command=evidence.command,
            created=evidence.created,
            commit=evidence.commit,
            smoke=evidence.smoke,
            config=evidence.config,
            seconds=evidence.seconds,
        ),
        verdict=s.VerdictResult(
            outcome=evidence.verdict.outcome.value,
            sentence=_sentence(evidence.verdict),
            gates=[_gate(gate) for gate in evidence.verdict.gates],
            remarks=list(evidence.verdict.remarks),
            recommended=recommended,
        ),
        teacher=_model(evidence.teacher) if evidence.teacher else None,
        student=_model(evidence.student),
        training=_training(evidence.distilled) if evidence.distilled else None,
        graph=s.GraphFacts(
            sha256=evidence.graph.sha256,
            opset=evidence.graph.opset,
            multiple=evidence.graph.multiple,
            parity_max_abs=_finite(evidence.graph.parity_max_abs),
            parity_images=evidence.graph.parity_images,
        ),
        tests=_tests(evidence.tests),
        photos=_photos(evidence.photos) if evidence.photos else None,
        calibration=_patches(evidence.calibration) if evidence.calibration else None,
        host=_like(s.HostFacts, evidence.host),
        measurements=measurements,
        failures=[_like(s.FailureResult, failure) for failure in evidence.failures],
        not_measured=list(evidence.not_measured),
        warnings=list(evidence.warnings),
        plans=[_plan(plan) for plan in evidence.plans],
        rivals=[_rival(rival, evidence) for rival in evidence.rivals],
    )


def load(file: Path) -> s.Results:
    """The results in a `results.json`.

    Raises:
        UsageError: it cannot be read, is no such file, or of another major version.
    """
    try:
        results = s.Results.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{file}: not the results of a run: {place or 'whole file'}: {first['msg']}",
            hint="give the results.json of a report",
        ) from error
    if results.schema_version.partition(".")[0] != s.SCHEMA_VERSION.partition(".")[0]:
        raise UsageError(
            f"{file}: its schema_version is {results.schema_version}, this program reads "
            f"{s.SCHEMA_VERSION}",
            hint="write the report anew: mipkd-pipeline report RUN",
        )
    return results


def _measurement(m: Measurement, every: Sequence[Measurement]) -> s.MeasurementResult:
    return s.MeasurementResult(
        role=m.role,
        target=m.target,
        precision=m.precision,
        kind=_kind(m),
        size_bytes=m.size_bytes or None,
        latencies=[_latency(m, latency, every) for latency in m.latencies],
        quality=_quality(m, reference(every, m.role)),
        versions=m.versions,
        notes=list(m.notes),
        invalid_because=m.invalid_because,
        conditions=m.conditions,
        device=m.device,
        host=_like(s.HostFacts, m.host) if m.host else None,
    )


def _kind(m: Measurement) -> Literal["measured", "simulated", "reference"]:
    if m.target == REFERENCE:
        return "reference"
    return "simulated" if m.simulated else "measured"


def _latency(m: Measurement, latency: Latency, every: Sequence[Measurement]) -> s.LatencyResult:
    found = percentiles(latency.samples_s) if latency.samples_s else None
    here = [one for one in every if one.target == m.target]
    fp32 = [one for one in here if (one.role, one.precision) == (m.role, "fp32") and one is not m]
    over_fp32 = speedup(fp32[0], m, latency.size) if fp32 else None
    teachers = [one for one in here if one.role == "teacher" != m.role]
    over_teacher = speedup_over_best(teachers, m, latency.size)
    return s.LatencyResult(
        height=latency.size[0],
        width=latency.size[1],
        samples=len(latency.samples_s),
        p50_ms=found.p50_s * 1e3 if found else None,
        p90_ms=found.p90_s * 1e3 if found else None,
        p99_ms=found.p99_s * 1e3 if found else None,
        cold_start_ms=latency.cold_start_s * 1e3 if found else None,
        warmups=latency.warmup,
        speedup_over_teacher=_ratio(*over_teacher) if over_teacher else None,
        speedup_over_fp32=_ratio(over_fp32, "fp32") if over_fp32 else None,
        invalid_because=latency.invalid_because or m.invalid_because,
        joules_per_frame=_finite(latency.joules_per_frame),
        power_from=latency.power_from,
        p50_range=_range(found.p50_range_s) if found else None,
        p90_range=_range(found.p90_range_s) if found else None,
        p99_range=_range(found.p99_range_s) if found else None,
        end_to_end_ms=latency.end_to_end_s * 1e3 if latency.end_to_end_s else None,
        load_ms=latency.load_s * 1e3 if latency.load_s is not None else None,
        memory_mb=latency.memory_bytes / 1e6 if latency.memory_bytes is not None else None,
        samples_s=[round(sample, 9) for sample in latency.samples_s],
    )


def _range(ends_s: tuple[float, float]) -> s.RangeResult:
    return s.RangeResult(low=ends_s[0] * 1e3, high=ends_s[1] * 1e3)


def _ratio(ratio: Ratio, against: str) -> s.RatioResult:
    return s.RatioResult(value=ratio.value, low=ratio.low, high=ratio.high, against=against)


def _quality(m: Measurement, base: Measurement | None) -> s.QualityResult | None:
    psnr_db, ssim = mean_psnr_db(m), mean_ssim(m)
    if psnr_db is None or ssim is None:
        return None
    drops = drop_by_image(m, base) if m is not base else {}
    worst = max(drops, key=lambda image: drops[image], default="")
    return s.QualityResult(
        psnr_y_db=psnr_db,
        ssim_y=ssim,
        mean_drop_db=statistics.fmean(drops.values()) if drops else None,
        worst_drop_db=drops.get(worst),
        worst_image=worst,
        images=[
            s.ImageResult(
                image=score.image,
                psnr_y_db=_finite(score.psnr_y_db),
                ssim_y=_finite(score.ssim_y),
                drop_db=_finite(drops.get(score.image)),
            )
            for score in m.scores
        ],
    )


def _rival(rival: Rival, evidence: Evidence) -> s.RivalResult:
    found = over(rival.name, evidence.measurements)
    return s.RivalResult(
        name=rival.name,
        sentence=sentence(found, rival, evidence.student),
        model=_model(rival.model) if rival.model else None,
        training=_training(rival.distilled) if rival.distilled else None,
        fp32_gain_db=as_interval(found.fp32_db),
        gains=[gain_result(one) for one in found.on],
        plans=[_plan(plan) for plan in rival.plans],
    )


def _sentence(verdict: Verdict) -> str:
    """May I ship it? One sentence, and what to ship."""
    gates = verdict.gates
    failed = [gate for gate in gates if gate.outcome is Outcome.FAIL]
    unjudged = [gate for gate in gates if gate.outcome is Outcome.INVALID]
    ships = [f"{one.target} {one.precision}" for one in verdict.recommended if one.precision]
    if failed:
        start = f"{'Not all of it' if ships else 'No'}: {_of(failed, gates)} failed"
    elif unjudged:
        start = f"Not proven: {_of(unjudged, gates)} could not be judged"
    else:
        start = f"Yes: all {len(gates)} gates pass" if ships else f"All {len(gates)} gates pass"
    unseen = [one.target for one in verdict.recommended if one.simulated]
    ends = (
        [f"Ship {_and(ships) or 'nothing'}."]
        if ships or len(unseen) < len(verdict.recommended)
        else []
    )
    ends += [f"Not measured on the device: {_and(unseen)}."] if unseen else []
    return f"{start}{_who(failed or unjudged)}. {' '.join(ends)}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _of(some: Sequence[Gate], every: Sequence[Gate]) -> str:
    return f"{len(some)} of {len(every)} gates"


def _who(gates: Sequence[Gate]) -> str:
    """The gates by subject, the first three subjects."""
    named: dict[str, list[str]] = {}
    for gate in gates:
        named.setdefault(gate.subject, []).append(gate.name)
    texts = [f"{subject}: {', '.join(names)}" for subject, names in named.items()]
    more = [f"{len(texts) - 3} more"] if len(texts) > 3 else []
    return f" ({'; '.join(texts[:3] + more)})" if texts else ""


def _shipping(r: Recommendation, measurements: Sequence[Measurement], out: Path) -> s.Shipping:
    wanted = ("student", r.target, r.precision)
    found = (m for m in measurements if (m.role, m.target, m.precision) == wanted)
    m = next(found, None)
    return s.Shipping(
        target=r.target,
        precision=r.precision,
        reason=r.reason,
        summary=_summary(_measurement(m, measurements)) if m else "",
        file=_within_run(m.file, out) if m and m.file else "",
        size_bytes=m.size_bytes if m else None,
        simulated=r.simulated,
    )


def _summary(m: s.MeasurementResult) -> str:
    """Such as "1.20 MB; 17.4 ms at LR 320×180, 3.41× as fast as the teacher; 32.04 dB"."""
    facts = [megabytes(m.size_bytes)]
    latency = max(m.latencies, key=lambda one: one.height * one.width, default=None)
    if latency:
        speed = f"{milliseconds(latency.p50_ms)} ms at LR {as_size(latency.height, latency.width)}"
        over = latency.speedup_over_teacher
        facts.append(speed + (f", {times(over.value)} as fast as the teacher" if over else ""))
    if m.quality:
        facts.append(number(m.quality.psnr_y_db, 2, " dB"))
    return "; ".join(facts)


def _within_run(file: Path, out: Path) -> str:
    """The file's path from the folder that holds both it and the report: the run's."""
    common = Path(os.path.commonpath([file.absolute(), out.absolute()]))
    return file.absolute().relative_to(common).as_posix()


def _gate(gate: Gate) -> s.GateResult:
    return s.GateResult(
        name=gate.name,
        subject=gate.subject,
        outcome=gate.outcome.value,
        figure=_finite(gate.figure),
        bound=gate.bound if gate.unit else None,
        unit=gate.unit,
        reason=gate.reason,
    )


def _model(model: Model) -> s.ModelFacts:
    return s.ModelFacts(
        arch=model.arch,
        hyper=model.hyper,
        scale=model.scale,
        layout=model.layout,
        settled=model.settled,
        params=model.params or None,
        gmacs=_finite(model.gmacs) or None,
        sha256=model.sha256,
        licence=model.licence,
    )


def _training(distilled: Distilled) -> s.TrainingFacts:
    return s.TrainingFacts(
        steps=distilled.steps,
        seconds=distilled.seconds,
        losses=list(distilled.losses),
        psnr_y_db=_finite(distilled.psnr_y_db),
        before=before(distilled.curves),
        health=[
            s.HealthResult(name=name, value=value, remark=remark(name, value))
            for name, value in last_health(distilled.curves).items()
        ],
    )


def _spared(plan: QuantPlan) -> list[FloatLayer]:
    why = "float while it was trained on: it brings most for its time"
    return [FloatLayer(name, "", 0.0, 0.0, why) for name in plan.spared]


def _plan(plan: QuantPlan) -> s.PlanResult:
    held = plan.holdout
    return s.PlanResult(
        target=plan.target,
        fixed=plan.fixed,
        ranges=plan.ranges,
        rest=plan.rest,
        operations=plan.operations,
        floats=[_like(s.FloatLayerResult, layer) for layer in (*_spared(plan), *plan.floats)],
        met=plan.met,
        drop_db=_finite(plan.drop_db),
        worst_db=_finite(plan.worst_db),
        front=[_like(s.FrontPointResult, point) for point in plan.front],
        height=plan.size[0],
        width=plan.size[1],
        holdout_photos=held.photos if held else 0,
        holdout_pages=held.pages if held else 0,
        holdout_sha256=held.sha256 if held else "",
    )


def _tests(tests: TestSet) -> s.ImagesFacts:
    return s.ImagesFacts(
        source=tests.source,
        sha256=tests.sha256,
        count=len(tests.images),
        skipped=list(tests.skipped),
        is_sample=tests.is_sample,
        detail={
            "published": "LR as published",
            "bicubic": "LR by MATLAB's bicubic",
        }.get(tests.lr_from, tests.lr_from),
    )


def _photos(photos: Photos) -> s.ImagesFacts:
    return s.ImagesFacts(
        source=photos.source,
        sha256=photos.sha256,
        count=photos.count,
        skipped=list(photos.skipped),
        is_sample=photos.is_sample,
        detail="LR by MATLAB's bicubic",
    )


def _patches(patches: PatchSet) -> s.ImagesFacts:
    return s.ImagesFacts(
        source=patches.source,
        sha256=patches.sha256,
        count=patches.count,
        skipped=[],
        is_sample=False,
        detail=f"LR patches of {as_size(*patches.size)}",
    )


def _like(part: type[P], record: Any) -> P:
    """A part whose fields are the record's."""
    return part.model_validate({name: getattr(record, name) for name in part.model_fields})


def _finite(value: float | None) -> float | None:
    """JSON holds no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
