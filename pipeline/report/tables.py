"""The report's tables as text, the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mipkd.core.measurement import BY_KIT
from pipeline.report.schema import (
    LatencyResult,
    MeasurementResult,
    ModelFacts,
    PlanResult,
    RangeResult,
    RatioResult,
    Results,
)
from pipeline.report.wording import (
    NONE,
    as_size,
    interval,
    listed,
    megabytes,
    milliseconds,
    number,
    signed,
    thousands,
    three_digits,
)

_ORDER = {"fp32": 0, "bf16": 1, "fp16": 2, "w8": 3, "int8": 4}
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


def main_table(results: Results) -> Table:
    """Target x precision: size, latency, speed-up, quality, drop."""
    sizes = sizes_of(results)
    head = ["Target", "Model", "On disk"]
    head += [f"p50 ms at {as_size(*size)}" for size in sizes]
    head += ["× teacher", "× own FP32", "PSNR-Y dB", "SSIM-Y", "Mean drop dB", "Worst drop dB"]
    shipped = {(one.target, one.precision) for one in results.verdict.recommended}
    rows = []
    for m in _sorted(results.measurements):
        ships = m.role == "student" and (m.target, m.precision) in shipped
        kind = "shipped" if ships else m.kind if m.kind == "reference" else _role(m)
        rows.append(Row(kind, [*_names(m), *(_medians(m, sizes)), *_speed(m), *_pixels(m)]))
    return Table(head, rows, first=2)


def devices(results: Results) -> list[str]:
    """Which targets were measured on which other machine; none when all were on the run's own."""
    on: dict[str, list[str]] = {}
    for m in results.measurements:
        if m.host:
            facts = f"{m.host.cpu}, {m.host.cores} cores, {m.host.system}, id {m.host.id}"
            how = f"{facts} (by a kit)" if m.device == BY_KIT else f"{m.device}: {facts}"
            targets = on.setdefault(how, [])
            targets += [m.target] if m.target not in targets else []
    return [f"{', '.join(targets)} on {device}" for device, targets in on.items()]


def latency_table(results: Results) -> Table:
    """Every latency in full."""
    head = ["Target", "Model", "LR size", "Samples", "p50 ms", "p90 ms", "p99 ms"]
    head += ["Bytes to bytes ms", "Cold ms", "Load ms", "Memory MB"]
    head += ["× teacher", "× own FP32"]
    metered = any(one.power_from for m in results.measurements for one in m.latencies)
    head += ["J/frame"] if metered else []
    rows = []
    for m in _sorted(results.measurements):
        for one in m.latencies:
            few = " *" if 0 < one.samples < 100 else ""
            cells = [
                m.target,
                f"{m.role} {m.precision}",
                as_size(one.height, one.width),
                str(one.samples),
                milliseconds(one.p50_ms) + _within(one.p50_range),
                milliseconds(one.p90_ms) + _within(one.p90_range),
                milliseconds(one.p99_ms) + few + _within(one.p99_range),
                milliseconds(one.end_to_end_ms),
                milliseconds(one.cold_start_ms),
                milliseconds(one.load_ms),
                three_digits(one.memory_mb),
                _ratio(one.speedup_over_teacher, name_it=True),
                _ratio(one.speedup_over_fp32),
            ]
            cells += [three_digits(one.joules_per_frame)] if metered else []
            if one.invalid_because:
                cells[3] = "INVALID"
            rows.append(Row("INVALID" if one.invalid_because else _role(m), cells))
    return Table(head, rows, first=3)


def _within(found: RangeResult | None) -> str:
    return f" ({milliseconds(found.low)} to {milliseconds(found.high)})" if found else ""


def gate_table(results: Results) -> Table:
    """Every gate with figure, bound and reason; those that do not pass first."""
    order = ("FAIL", "INVALID", "PASS")
    rows = [
        Row(
            gate.outcome,
            [
                gate.outcome,
                gate.subject,
                gate.name,
                _with_unit(gate.figure, gate.unit),
                _with_unit(gate.bound, gate.unit),
                gate.reason,
            ],
        )
        for gate in sorted(results.verdict.gates, key=lambda gate: order.index(gate.outcome))
    ]
    return Table(["Outcome", "Subject", "Gate", "Figure", "Bound", "Reason"], rows, first=3, last=5)


def image_table(results: Results) -> Table:
    """PSNR of each image: the references, then what each target loses on it."""
    scored = [m for m in _sorted(results.measurements) if m.quality]
    references = [m for m in reversed(scored) if m.kind == "reference"]
    targets = [m for m in scored if m.kind != "reference"]
    head = ["Image"]
    head += [f"{m.role} {m.precision if m.role != 'bicubic' else ''}".strip() for m in references]
    head += [f"drop {m.target} {_model(m)}" for m in targets]
    by_image: dict[str, list[str]] = {}
    for m in (*references, *targets):
        for image in m.quality.images if m.quality else ():
            drop = signed(image.drop_db, 3)
            figure = number(image.psnr_y_db, 2) if m.kind == "reference" else drop
            by_image.setdefault(image.image, []).append(figure)
    rows = [Row("image", [name, *cells]) for name, cells in by_image.items()]
    return Table(head, rows, first=1)


def model_table(results: Results) -> Table:
    """Teacher and student side by side."""
    models = [("Student", results.student)]
    models += [("Teacher", results.teacher)] if results.teacher else []
    facts: list[tuple[str, list[str]]] = [
        ("Family", [model.arch for _, model in models]),
        ("Sizes", [listed(model.hyper) for _, model in models]),
        ("Scale", [f"×{model.scale}" for _, model in models]),
        ("Parameters", [_parameters(model) for _, model in models]),
        ("GMACs at LR 256×256", [number(model.gmacs, 1) for _, model in models]),
        ("Checkpoint layout", [model.layout for _, model in models]),
        ("Settled", [listed(model.settled) for _, model in models]),
        ("Licence", [model.licence for _, model in models]),
        ("SHA-256", [model.sha256[:16] for _, model in models]),
    ]
    rows = [Row("fact", [name, *cells]) for name, cells in facts if set(cells) != {NONE}]
    return Table(["", *(name for name, _ in models)], rows, first=99)


def float_table(plan: PlanResult) -> Table:
    """The operations of a target that INT8 leaves float, the most harmful first."""
    rows = [
        Row(
            "layer",
            [one.name, one.kind, number(one.harm_db, 4), three_digits(one.cost_ms), one.reason],
        )
        for one in sorted(plan.floats, key=lambda one: -one.harm_db)
    ]
    head = ["Operation", "Kind", "Harm of INT8 dB", "Cost of float ms", "Reason"]
    return Table(head, rows, first=2, last=4)


def sizes_of(results: Results) -> list[tuple[int, int]]:
    """All LR sizes measured, smallest first."""
    found = {(one.height, one.width) for m in results.measurements for one in m.latencies}
    return sorted(found, key=lambda size: (size[0] * size[1], size))


def _sorted(measurements: Iterable[MeasurementResult]) -> list[MeasurementResult]:
    """Targets as they ran; student, rivals, teacher; floats before INT8; references last."""
    listed_ = list(measurements)
    rivals = list(dict.fromkeys(m.role for m in listed_ if m.role not in _ROLES))
    targets = list(dict.fromkeys(m.target for m in listed_ if m.kind != "reference"))
    return sorted(
        listed_,
        key=lambda m: (
            targets.index(m.target) if m.target in targets else len(targets),
            _ROLES.get(m.role, 1),
            rivals.index(m.role) if m.role in rivals else 0,
            _ORDER.get(m.precision, 9),
        ),
    )


def _role(m: MeasurementResult) -> str:
    """Of a row: all rivals look alike."""
    return m.role if m.role in _ROLES else "rival"


def _model(m: MeasurementResult) -> str:
    """The student by its precision alone."""
    return m.precision if m.role == "student" else f"{m.role} {m.precision}"


def _names(m: MeasurementResult) -> list[str]:
    model = m.role if m.role == "bicubic" else f"{m.role} {m.precision}"
    target = f"{m.target} (simulated)" if m.kind == "simulated" else m.target
    return [target, model, megabytes(m.size_bytes)]


def _medians(m: MeasurementResult, sizes: list[tuple[int, int]]) -> list[str]:
    if m.kind == "simulated":
        return [_NOT_MEASURED] * len(sizes)
    by_size = {(one.height, one.width): one for one in m.latencies}
    return [_median(by_size.get(size)) for size in sizes]


def _median(one: LatencyResult | None) -> str:
    if one is None:
        return NONE
    return "INVALID" if one.invalid_because else milliseconds(one.p50_ms)


def _speed(m: MeasurementResult) -> list[str]:
    """At the largest size."""
    one = max(m.latencies, key=lambda one: one.height * one.width, default=None)
    if one is None:
        return [NONE, NONE]
    return [_ratio(one.speedup_over_teacher), _ratio(one.speedup_over_fp32)]


def _ratio(ratio: RatioResult | None, *, name_it: bool = False) -> str:
    if ratio is None:
        return NONE
    against = f" of {ratio.against}" if name_it else ""
    return interval(ratio.value, ratio.low, ratio.high) + against


def _pixels(m: MeasurementResult) -> list[str]:
    if m.quality is None:
        return [NONE] * 4
    q = m.quality
    worst = f" ({q.worst_image})" if round(q.worst_drop_db or 0.0, 3) else ""
    return [
        number(q.psnr_y_db, 3),
        number(q.ssim_y, 4),
        signed(q.mean_drop_db, 3),
        signed(q.worst_drop_db, 3) + worst,
    ]


def _with_unit(value: float | None, unit: str) -> str:
    digits = 3 if unit == "dB" else 2
    return number(value, digits, "×" if unit == "x" else f" {unit}") if value is not None else NONE


def _parameters(model: ModelFacts) -> str:
    return thousands(model.params)
