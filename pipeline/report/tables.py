"""The report's tables as text, the same for HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mipkd.core.evidence import Evidence, Verdict
from mipkd.core.measurement import BY_KIT, Measurement
from mipkd.core.precision import order_of
from mipkd.core.records import FloatLayer, QuantPlan
from mipkd.metrics.base import Metric
from pipeline.bench.comparisons import drop_by_image, find_reference, scored_metrics
from pipeline.bench.stats import Estimate
from pipeline.report.figures import Figures, LatencyFigures, ModelFigures, Speedup
from pipeline.report.wording import (
    NONE,
    as_size,
    in_ms,
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
)

_NOT_MEASURED = "not measured"
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


def main_table(evidence: Evidence, figures: Figures) -> Table:
    """Target x precision: size, latency, speed-up, quality, drop."""
    sizes, metrics = sizes_of(evidence.measurements), scored_metrics(evidence.measurements)
    told = any(m.kernels for m in evidence.measurements)
    head = ["Target", "Model", *(["Convolutions run"] if told else []), "On disk"]
    head += [f"p50 ms at {as_size(*size)}" for size in sizes]
    head += ["× teacher", "× own FP32", *(f"{m.title} {m.unit}".rstrip() for m in metrics)]
    head += ["Mean drop dB", "Worst drop dB"]
    shipped = {(one.target, one.precision) for one in evidence.verdict.recommended}
    rows = []
    for m, found in _sort_measurements(evidence, figures):
        ships = m.role == "student" and (m.target, m.precision) in shipped
        kind = "shipped" if ships else m.kind if m.kind == "reference" else _role(m)
        cells = [*_names(m), *([kernels(m)] if told else []), megabytes(m.size_bytes)]
        cells += [*_medians(found, sizes), *_speed(found)]
        rows.append(Row(kind, [*cells, *_means(found, metrics), *_drops(found)]))
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


def latency_table(evidence: Evidence, figures: Figures) -> Table:
    """Every latency in full."""
    head = ["Target", "Model", "LR size", "Samples", "p50 ms", "p90 ms", "p99 ms"]
    head += ["Bytes to bytes ms", "Cold ms", "Load ms", "Memory MB"]
    head += ["× teacher", "× own FP32"]
    metered = any(one.power_from for m in evidence.measurements for one in m.latencies)
    head += ["J/frame"] if metered else []
    rows = []
    for m, found in _sort_measurements(evidence, figures):
        for raw, one in zip(m.latencies, found.latencies, strict=True):
            few = " *" if 0 < len(raw.samples_s) < 100 else ""
            cells = [
                m.target,
                f"{m.role} {precision_label(m)}",
                as_size(*one.size),
                "INVALID" if one.invalid_because else str(len(raw.samples_s)),
                _with_ends(one.p50_ms),
                _with_ends(one.p90_ms),
                _with_ends(one.p99_ms, few),
                milliseconds(in_ms(raw.end_to_end_s)),
                milliseconds(in_ms(raw.cold_start_s) if raw.samples_s else None),
                milliseconds(in_ms(raw.load_s)),
                three_digits(raw.memory_bytes / 1e6 if raw.memory_bytes is not None else None),
                _ratio(one.over_teacher, name_it=True),
                _ratio(one.over_fp32),
            ]
            cells += [three_digits(raw.joules_per_frame)] if metered else []
            rows.append(Row("INVALID" if one.invalid_because else _role(m), cells))
    return Table(head, rows, first=3)


def _with_ends(one: Estimate | None, few: str = "") -> str:
    if one is None:
        return NONE
    return f"{milliseconds(one.value)}{few} ({milliseconds(one.low)} to {milliseconds(one.high)})"


def gate_table(verdict: Verdict) -> Table:
    """Every gate with figure, bound and reason; those that do not pass first."""
    order = ("FAIL", "INVALID", "PASS")
    rows = [
        Row(
            gate.outcome.value,
            [
                gate.outcome.value,
                gate.subject,
                gate.name,
                _with_unit(gate.figure, gate.unit),
                _with_unit(gate.bound if gate.unit else None, gate.unit),
                gate.reason,
            ],
        )
        for gate in sorted(verdict.gates, key=lambda gate: order.index(gate.outcome.value))
    ]
    return Table(["Outcome", "Subject", "Gate", "Figure", "Bound", "Reason"], rows, first=3, last=5)


def image_table(evidence: Evidence, figures: Figures) -> Table:
    """PSNR of each image: the references, then what each target loses on it."""
    scored = [m for m, _ in _sort_measurements(evidence, figures) if m.scores]
    references = [m for m in reversed(scored) if m.kind == "reference"]
    targets = [m for m in scored if m.kind != "reference"]
    head = ["Image"]
    head += [f"{m.role} {m.precision if m.role != 'bicubic' else ''}".strip() for m in references]
    head += [f"drop {m.target} {_model(m)}" for m in targets]
    by_image: dict[str, list[str]] = {}
    for m in references:
        for score in m.scores:
            by_image.setdefault(score.image, []).append(number(score.psnr_y_db, 2))
    for m in targets:
        drops = drop_by_image(m, find_reference(evidence.measurements, m.role))
        for score in m.scores:
            drop = signed(drops.get(score.image), 3)
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
        ("Settled", [listed(model.settled) for _, model in models]),
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
    }
    tests, photos, patches = evidence.tests, evidence.photos, evidence.calibration
    detail = lr_from.get(tests.lr_from, tests.lr_from)
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


def _sort_measurements(
    evidence: Evidence, figures: Figures
) -> list[tuple[Measurement, ModelFigures]]:
    """Targets as they ran; student, rivals, teacher; floats before INT8; references last."""
    every = evidence.measurements
    rivals = list(dict.fromkeys(m.role for m in every if m.role not in _ROLES))
    targets = list(dict.fromkeys(m.target for m in every if m.kind != "reference"))
    return sorted(
        zip(every, figures.models, strict=True),
        key=lambda pair: (
            targets.index(pair[0].target) if pair[0].target in targets else len(targets),
            _ROLES.get(pair[0].role, 1),
            rivals.index(pair[0].role) if pair[0].role in rivals else 0,
            order_of(pair[0].precision),
        ),
    )


def _role(m: Measurement) -> str:
    """Of a row: all rivals look alike."""
    return m.role if m.role in _ROLES else "rival"


def _model(m: Measurement) -> str:
    """The student by its precision alone."""
    label = precision_label(m)
    return label if m.role == "student" else f"{m.role} {label}"


def _names(m: Measurement) -> list[str]:
    model = m.role if m.role == "bicubic" else f"{m.role} {precision_label(m)}"
    target = f"{m.target} (simulated)" if m.kind == "simulated" else m.target
    return [target, model]


def _medians(found: ModelFigures, sizes: list[tuple[int, int]]) -> list[str]:
    if found.kind == "simulated":
        return [_NOT_MEASURED] * len(sizes)
    by_size = {one.size: one for one in found.latencies}
    return [_median(by_size.get(size)) for size in sizes]


def _median(one: LatencyFigures | None) -> str:
    if one and one.invalid_because:
        return "INVALID"
    return milliseconds(one.p50_ms.value) if one and one.p50_ms else NONE


def _speed(found: ModelFigures) -> list[str]:
    """At the largest size."""
    one = max(found.latencies, key=lambda one: math.prod(one.size), default=None)
    return [_ratio(one.over_teacher), _ratio(one.over_fp32)] if one else [NONE, NONE]


def _ratio(ratio: Speedup | None, *, name_it: bool = False) -> str:
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
    return [signed(psnr_y.mean_drop, 3), signed(psnr_y.worst_drop, 3) + worst]


def _with_unit(value: float | None, unit: str) -> str:
    digits = 3 if unit == "dB" else 2
    return number(value, digits, "×" if unit == "x" else f" {unit}") if value is not None else NONE
