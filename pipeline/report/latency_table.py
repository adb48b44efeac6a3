"""Every latency in full."""

from __future__ import annotations

from mipkd.core.evidence import Evidence
from mipkd.core.measurement import Latency
from pipeline.bench.stats import Estimate
from pipeline.report.figures import Figures, LatencyFigures
from pipeline.report.tables import Row, Table, describe_ratio, role_of, sort_measurements
from pipeline.report.wording import (
    NONE,
    as_size,
    in_ms,
    milliseconds,
    precision_label,
    three_digits,
)


def latency_table(evidence: Evidence, figures: Figures) -> Table:
    """Each model at each size; no figure stands beside INVALID."""
    head = ["Target", "Model", "LR size", "Samples", "p50 ms", "p90 ms", "p99 ms"]
    head += ["Bytes to bytes ms", "Cold ms", "Load ms", "Memory MB"]
    head += ["× as fast as the teacher", "× as fast as in FP32"]
    metered = any(one.power_from for m in evidence.measurements for one in m.latencies)
    head += ["J/frame"] if metered else []
    rows = []
    for m, found in sort_measurements(evidence, figures):
        for raw, one in zip(m.latencies, found.latencies, strict=True):
            names = [m.target, f"{m.role} {precision_label(m)}", as_size(*one.size)]
            if one.invalid_because:  # no figure beside it: none can be believed
                rows.append(Row("INVALID", [*names, "INVALID", *[NONE] * (len(head) - 4)]))
                continue
            cells = [*names, *_latency(raw, one)]
            cells += [three_digits(raw.joules_per_frame)] if metered else []
            rows.append(Row(role_of(m), cells))
    return Table(head, rows, first=3)


def _latency(raw: Latency, one: LatencyFigures) -> list[str]:
    few = " *" if 0 < len(raw.samples_s) < 100 else ""
    return [
        str(len(raw.samples_s)),
        _with_ends(one.p50_ms),
        _with_ends(one.p90_ms),
        _with_ends(one.p99_ms, few),
        milliseconds(in_ms(raw.end_to_end_s)),
        milliseconds(in_ms(raw.cold_start_s) if raw.samples_s else None),
        milliseconds(in_ms(raw.load_s)),
        three_digits(raw.memory_bytes / 1e6 if raw.memory_bytes is not None else None),
        describe_ratio(one.over_teacher, name_it=True),
        describe_ratio(one.over_fp32),
    ]


def _with_ends(one: Estimate | None, few: str = "") -> str:
    if one is None:
        return NONE
    return f"{milliseconds(one.value)}{few} ({milliseconds(one.low)} to {milliseconds(one.high)})"


def list_doubts(figures: Figures) -> list[str]:
    """Why latencies of others than the student are INVALID: no gate names them."""
    found: dict[str, list[str]] = {}
    for m in figures.models:
        for one in m.latencies if m.role != "student" else ():
            if one.invalid_because:
                names = found.setdefault(one.invalid_because, [])
                names.append(f"{m.target} {m.role} {m.precision} at {as_size(*one.size)}")
    return [f"{', '.join(names)}: {why}" for why, names in found.items()]
