"""The report's tables as text, the same for HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mipkd.core.evidence import Evidence, Gate
from mipkd.core.measurement import BY_KIT, Measurement
from mipkd.core.precision import order_of
from mipkd.core.records import FRAMES, FloatLayer, QuantPlan
from mipkd.metrics.base import Metric, list_plain
from pipeline.bench.comparisons import (
    drop_by_image,
    find_reference,
    frames_per_second,
    scored_metrics,
)
from pipeline.report.figures import Figures, LatencyFigures, ModelFigures, Speedup
from pipeline.report.glossary import title_of
from pipeline.report.wording import (
    NONE,
    TO,
    as_size,
    bound_of,
    interval,
    kernels,
    listed,
    megabytes,
    milliseconds,
    number,
    precision_label,
    signed,
    thousands,
    three_digits,
    with_unit,
)

_ROLES = {"student": 0, "teacher": 2, "bicubic": 3}  # between the first two: rivals


@dataclass(frozen=True)
class Row:
    """Cells, and what the row is: "shipped", a role, "reference", a gate's word."""

    kind: str
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """Headings and rows; columns from `first` up to `last` hold figures, the others text."""

    head: list[str]
    rows: list[Row]
    first: int
    last: int = 99


@dataclass(frozen=True)
class ImagesUsed:
    """A set of images, and what it was for."""

    name: str
    count: int
    source: str
    detail: str  # where the LR images come from, size of patches
    skipped: tuple[str, ...] = ()
    is_sample: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)  # why: how many


def quality_table(evidence: Evidence, figures: Figures) -> Table:
    """Every metric of each model's own pixels, and what its PSNR-Y is below the teacher's."""
    metrics = scored_metrics(evidence.measurements)
    teacher = figures.compared.get("teacher")
    to = TO[evidence.tests.against]
    head = ["Target", "Model", *(f"{m.title}{to} {m.unit}".rstrip() for m in metrics)]
    head += ["To the teacher, dB"] if teacher is not None else []
    rows = []
    for m, found in sort_measurements(evidence, figures):
        if found.quality:
            cells = [*_names(m), *_means(found, metrics)]
            mean = found.quality["psnr_y"].mean if "psnr_y" in found.quality else math.nan
            cells += [signed(mean - teacher, 3)] if teacher is not None else []
            rows.append(Row(_kind(m, evidence), cells))
    return Table(head, rows, first=2)


def list_quality_notes(evidence: Evidence) -> list[str]:
    """Which metrics are better when lower, and on how many images one was not measured, and why."""
    shown = scored_metrics(evidence.measurements)
    lower = ", ".join(metric.title for metric in shown if metric.better == "down")
    notes = [f"Lower is better: {lower}"] if lower else []
    images = {score.image: score for m in evidence.measurements for score in m.scores}
    for metric in list_plain():
        without = sum(metric.name not in score.metrics for score in images.values())
        if without and metric.least_side > 1:
            notes.append(
                f"{metric.title}: n/a on {without} of {len(images)} images; it needs "
                f"{metric.least_side} pixels a side"
            )
    return notes


def speed_table(evidence: Evidence, figures: Figures) -> Table:
    """What each model takes on disk and in time, and how many times as fast it is as others."""
    sizes = sizes_of(evidence.measurements)
    head = ["Target", "Model", "On disk", *(f"p50 ms at {as_size(*size)}" for size in sizes)]
    head += ["× as fast as the teacher", "× as fast as in FP32"]
    streamed = any(m.stream for m in evidence.measurements)
    head += ["Frames/s"] if streamed else []
    rows = []
    for m, found in sort_measurements(evidence, figures):
        if m.kind == "measured":
            cells = [*_names(m), megabytes(m.size_bytes), *_medians(found, sizes), *_speed(found)]
            cells += [_frames(m)] if streamed else []
            rows.append(Row(_kind(m, evidence), cells))
    return Table(head, rows, first=2)


def _frames(m: Measurement) -> str:
    """Of a stream: such as "41.2, 2 in flight"."""
    if m.stream is None:
        return NONE
    if m.stream.invalid_because:
        return "INVALID"
    return f"{frames_per_second(m.stream).value:.1f}, {m.stream.in_flight} in flight"


def cost_table(evidence: Evidence, figures: Figures) -> Table:
    """What each precision loses against the same network in FP32, and what that brings."""
    told = any(m.kernels for m in evidence.measurements)
    head = ["Target", "Model", *(["Convolutions run"] if told else []), "On disk"]
    head += ["× as fast as in FP32", "PSNR-Y lost, mean dB", "PSNR-Y lost, worst image dB"]
    rows = []
    for m, found in sort_measurements(evidence, figures):
        if m.kind != "reference" and found.quality:
            cells = [*_names(m), *([kernels(m)] if told else []), megabytes(m.size_bytes)]
            rows.append(Row(_kind(m, evidence), [*cells, _speed(found)[1], *_drops(found)]))
    return Table(head, rows, first=3 if told else 2)


def devices(measurements: Iterable[Measurement]) -> list[str]:
    """Which targets were measured on which other machine; none when all were on the run's own."""
    on: dict[str, list[str]] = {}
    for m in measurements:
        if m.host and m.device:
            facts = f"{m.host.cpu}, {m.host.cores} cores, {m.host.system}, id {m.host.id}"
            how = f"{facts} (by a kit)" if m.device == BY_KIT else f"{m.device}: {facts}"
            targets = on.setdefault(how, [])
            targets += [m.target] if m.target not in targets else []
    return [f"{', '.join(targets)} on {device}" for device, targets in on.items()]


def gate_table(gates: Iterable[Gate]) -> Table:
    """Gates with figure, bound and reason; those that do not pass first."""
    order = ("FAIL", "INVALID", "PASS")
    rows = [
        Row(
            gate.outcome.value,
            [
                gate.outcome.value,
                title_of(gate.name),
                gate.subject,
                with_unit(gate.figure, gate.unit),
                bound_of(gate),
                gate.reason,
            ],
        )
        for gate in sorted(gates, key=lambda gate: order.index(gate.outcome.value))
    ]
    return Table(["Outcome", "Gate", "Of", "Figure", "Bound", "Reason"], rows, first=3, last=5)


def image_table(evidence: Evidence, figures: Figures) -> Table:
    """PSNR of each image: the references, then what each target loses on it."""
    scored = [m for m, _ in sort_measurements(evidence, figures) if m.scores]
    references = [m for m in reversed(scored) if m.kind == "reference"]
    targets = [m for m in scored if m.kind != "reference"]
    head = ["Image"]
    head += [f"{m.role} {m.precision if m.role != 'bicubic' else ''}".strip() for m in references]
    head += [f"lost, {m.target} {_model(m)}" for m in targets]
    by_image: dict[str, list[str]] = {}
    for m in references:
        for score in m.scores:
            by_image.setdefault(score.image, []).append(number(score.psnr_y_db, 2))
    for m in targets:
        drops = drop_by_image(m, find_reference(evidence.measurements, m.role))
        for score in m.scores:
            drop = number(drops.get(score.image), 3)
            by_image.setdefault(score.image, []).append(drop)
    rows = [Row("image", [name, *cells]) for name, cells in by_image.items()]
    return Table(head, rows, first=1)


def model_table(evidence: Evidence) -> Table:
    """Teacher and student side by side."""
    models = [("Student", evidence.student)]
    models += [("Teacher", evidence.teacher)] if evidence.teacher else []
    facts: list[tuple[str, list[str]]] = [
        ("Family", [model.arch for _, model in models]),
        ("Sizes", [listed(model.hyper) for _, model in models]),
        ("Scale", [f"×{model.scale}" for _, model in models]),
        ("Parameters", [thousands(model.params or None) for _, model in models]),
        ("GMACs at LR 256×256", [number(model.gmacs or None, 1) for _, model in models]),
        ("Checkpoint layout", [model.layout for _, model in models]),
        ("Not in the file; found by", [listed(model.settled) for _, model in models]),
        ("Licence", [model.licence for _, model in models]),
        ("SHA-256", [model.sha256[:16] for _, model in models]),
    ]
    rows = [Row("fact", [name, *cells]) for name, cells in facts if set(cells) != {NONE}]
    return Table(["", *(name for name, _ in models)], rows, first=99)


def images_used(evidence: Evidence) -> list[ImagesUsed]:
    """Test images, training photos and calibration patches, those that there are."""
    lr_from = {
        "published": "LR as published",
        "bicubic": "LR by MATLAB's bicubic",
        "mixed": "LR as published where it is, else by MATLAB's bicubic",
        "degraded": "LR degraded by [degradation], each image once",
        "partly degraded": "LR as published where it is, else degraded by [degradation]",
        FRAMES: "LR frames without truth",
    }
    tests, photos, patches = evidence.tests, evidence.photos, evidence.calibration
    detail = lr_from.get(tests.lr_from, tests.lr_from)
    detail += f"; quality is measured{TO[tests.against]}" if TO[tests.against] else ""
    facts = (len(tests.images), tests.source, detail, tests.skipped, tests.is_sample)
    found = [ImagesUsed("Test", *facts, tests.left_out)]
    if photos:
        detail = lr_from.get(photos.lr_from, photos.lr_from)
        facts = (photos.count, photos.source, detail, photos.skipped, photos.is_sample)
        found.append(ImagesUsed("Training", *facts, photos.left_out))
    if patches:
        size = f"LR patches of {as_size(*patches.size)}"
        found.append(ImagesUsed("Calibration", patches.count, patches.source, size))
    return found


def float_table(plan: QuantPlan) -> Table:
    """The operations of a target that INT8 leaves float, the most harmful first."""
    rows = [
        Row(
            "layer",
            [one.name, one.kind, number(one.harm_db, 4), three_digits(one.cost_ms), one.reason],
        )
        for one in sorted([*_list_spared(plan), *plan.floats], key=lambda one: -one.harm_db)
    ]
    head = ["Operation", "Kind", "Harm of INT8 dB", "Cost of float ms", "Reason"]
    return Table(head, rows, first=2, last=4)


def _list_spared(plan: QuantPlan) -> list[FloatLayer]:
    why = "float while it was trained on: it brings most for its time"
    return [FloatLayer(name, "", 0.0, 0.0, why) for name in plan.trained_as_float]


def sizes_of(measurements: Iterable[Measurement]) -> list[tuple[int, int]]:
    """All LR sizes measured, smallest first."""
    found = {one.size for m in measurements for one in m.latencies}
    return sorted(found, key=lambda size: (size[0] * size[1], size))


def sort_measurements(
    evidence: Evidence, figures: Figures
) -> list[tuple[Measurement, ModelFigures]]:
    """Targets as they ran; student, rivals, teacher; floats before INT8; then references, and what
    was simulated."""
    every = evidence.measurements
    rivals = list(dict.fromkeys(m.role for m in every if m.role not in _ROLES))
    targets = list(dict.fromkeys(m.target for m in every if m.kind != "reference"))
    return sorted(
        zip(every, figures.models, strict=True),
        key=lambda pair: (
            pair[0].simulated,
            targets.index(pair[0].target) if pair[0].target in targets else len(targets),
            _ROLES.get(pair[0].role, 1),
            rivals.index(pair[0].role) if pair[0].role in rivals else 0,
            order_of(pair[0].precision),
        ),
    )


def _kind(m: Measurement, evidence: Evidence) -> str:
    """Of a row: what is to be shipped, what is a reference or simulated, else whose model it is."""
    shipped = {(one.target, one.precision) for one in evidence.verdict.recommended}
    if m.role == "student" and (m.target, m.precision) in shipped:
        return "shipped"
    return role_of(m) if m.kind == "measured" else m.kind


def role_of(m: Measurement) -> str:
    """Of a row: all rivals look alike."""
    return m.role if m.role in _ROLES else "rival"


def _model(m: Measurement) -> str:
    """The student by its precision alone."""
    label = precision_label(m)
    return label if m.role == "student" else f"{m.role} {label}"


def _names(m: Measurement) -> list[str]:
    model = m.role if m.role == "bicubic" else f"{m.role} {precision_label(m)}"
    target = f"{m.target} ({m.kind})" if m.simulated else m.target
    return [target, model]


def _medians(found: ModelFigures, sizes: list[tuple[int, int]]) -> list[str]:
    by_size = {one.size: one for one in found.latencies}
    return [_median(by_size.get(size)) for size in sizes]


def _median(one: LatencyFigures | None) -> str:
    if one and one.invalid_because:
        return "INVALID"
    return milliseconds(one.p50_ms.value) if one and one.p50_ms else NONE


def _speed(found: ModelFigures) -> list[str]:
    """At the largest size."""
    one = max(found.latencies, key=lambda one: math.prod(one.size), default=None)
    return (
        [describe_ratio(one.over_teacher), describe_ratio(one.over_fp32)] if one else [NONE, NONE]
    )


def describe_ratio(ratio: Speedup | None, *, name_it: bool = False) -> str:
    if ratio is None:
        return NONE
    return interval(ratio) + (f" of {ratio.against}" if name_it else "")


def _means(found: ModelFigures, metrics: Iterable[Metric]) -> list[str]:
    by_name = found.quality
    return [number(by_name[m.name].mean, m.digits) if m.name in by_name else NONE for m in metrics]


def _drops(found: ModelFigures) -> list[str]:
    psnr_y = found.quality.get("psnr_y")
    if psnr_y is None:
        return [NONE, NONE]
    worst = f" ({psnr_y.worst_image})" if round(psnr_y.worst_drop or 0.0, 3) else ""
    return [number(psnr_y.mean_drop, 3), number(psnr_y.worst_drop, 3) + worst]
