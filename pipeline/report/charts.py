"""The report's plots: quality against latency, and the trace of the training."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from mipkd.core.health import BEFORE, is_health
from pipeline.report.plots import COLOURS, Curve, Point, lines, scatter
from pipeline.report.schema import MeasurementResult, PlanResult, QualityResult, Results
from pipeline.report.tables import sizes_of
from pipeline.report.wording import as_size, number

SHAPES = {"fp32": "circle", "bf16": "square", "fp16": "square", "int8": "diamond"}
_NOT_TERMS = {"step", "total", "lr", "seconds", "psnr_y_db", "ssim_y", "grad_norm"}
_POINTS = 240  # of a curve; a longer one is averaged in bins


def quality_against_latency(results: Results) -> str:
    """PSNR over p50 at the largest LR size, whiskers to p90; "" when nothing was measured."""
    sizes = sizes_of(results)
    points = [p for m in results.measurements if sizes and (p := _point(m, results, sizes[-1]))]
    if not points:
        return ""
    size = as_size(*sizes[-1])
    title = f"PSNR-Y against latency at LR {size}: " + "; ".join(
        f"{p.name} {p.x:.3g} ms {number(p.y, 2)} dB" for p in points
    )
    x = f"ms at LR {size}, p50 to p90"
    return scatter(points, title=title, x=x, y="PSNR-Y, dB")


def front(plan: PlanResult) -> str:
    """Loss over latency of one target's candidates; "" for fewer than two."""
    if len(plan.front) < 2:
        return ""
    points = [
        Point(
            x=one.ms,
            y=one.drop_db,
            name=f"{one.floats} float" + (", built" if one.chosen else ""),
            colour=1 if one.chosen else 0,
            shape="diamond" if one.chosen else "circle",
        )
        for one in plan.front
    ]
    size = as_size(plan.height, plan.width)
    title = f"{plan.target}: PSNR-Y lost against latency at LR {size}: " + "; ".join(
        f"{p.name} {p.x:.3g} ms {number(p.y, 3)} dB" for p in points
    )
    return scatter(points, title=title, x=f"ms at LR {size}, estimated", y="PSNR-Y lost, dB")


def bicubic_note(results: Results) -> str:
    """Bicubic's PSNR in words: as a point it would squeeze all others together."""
    quality = _reference(results, "bicubic")
    return f"Bicubic: {number(quality.psnr_y_db, 2)} dB." if quality else ""


@dataclass(frozen=True)
class Trace:
    """The training as SVGs, each "" when there is nothing to draw, and the losses' legend."""

    losses: str = ""
    psnr: str = ""
    legend: tuple[tuple[str, int], ...] = ()  # name, colour


def training(metrics: Path | None) -> Trace:
    """The curves of a `metrics.jsonl`: one JSON object a line with `step` and figures."""
    rows = _rows(metrics) if metrics else []
    terms = [name for name in dict.fromkeys(k for row in rows for k in row) if _is_term(name)]
    curves = [
        Curve(name, *_thinned(*_series(rows, name)), colour % COLOURS)
        for colour, name in enumerate(["total", *terms])
    ]
    curves = [curve for curve in curves if len(curve.xs) > 1 and max(curve.ys) > 0]
    losses = psnr = ""
    if curves:
        log = min(y for curve in curves for y in curve.ys) >= 0  # dB may be below 0
        y = "loss (log scale)" if log else "loss"
        losses = lines(curves, title="Losses over the steps", x="step", y=y, log=log)
    steps, psnr_db = _series(rows, "psnr_y_db")
    if len(steps) > 1:
        title = f"Validation PSNR-Y, from {psnr_db[0]:.2f} to {psnr_db[-1]:.2f} dB"
        curve = Curve("validation PSNR-Y", steps, psnr_db, 0)
        psnr = lines([curve], title=title, x="step", y="PSNR-Y, dB")
    return Trace(losses, psnr, tuple((c.name, c.colour) for c in curves))


def _is_term(name: str) -> bool:
    return name not in _NOT_TERMS and not is_health(name) and not name.startswith((BEFORE, "_"))


def _point(m: MeasurementResult, results: Results, size: tuple[int, int]) -> Point | None:
    """The student with the pixels it made; the teacher with its reference quality, hollow."""
    if m.role not in ("student", "teacher"):
        return None  # rivals have figures of their own
    latency = next((one for one in m.latencies if (one.height, one.width) == size), None)
    quality = m.quality or _reference(results, m.role)
    if not (latency and quality) or latency.p50_ms is None or latency.invalid_because:
        return None
    targets = list(dict.fromkeys(one.target for one in results.measurements if one.latencies))
    return Point(
        x=latency.p50_ms,
        y=quality.psnr_y_db,
        name=f"{m.target} {m.precision}" + (" teacher" if m.role == "teacher" else ""),
        colour=targets.index(m.target) % COLOURS,
        shape=SHAPES.get(m.precision, "circle"),
        hollow=m.role == "teacher",
        reach=latency.p90_ms,
    )


def _reference(results: Results, role: str) -> QualityResult | None:
    found = (m.quality for m in results.measurements if (m.role, m.kind) == (role, "reference"))
    return next(found, None)


def _rows(curves: Path) -> list[dict[str, float]]:
    """The lines that are whole; a run that was killed may leave half of one."""
    try:
        text = curves.read_text()
    except OSError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def series(curves: Path, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one figure of a `metrics.jsonl`."""
    return _series(_rows(curves), name)


def last_health(curves: Path) -> dict[str, float]:
    """The last figure of each kind of a training's health; of what rested at the end, too."""
    return {k: v for row in _rows(curves) for k, v in row.items() if is_health(k)}


def before(curves: Path) -> dict[str, float]:
    """PSNR-Y in dB before the first step of a projected student, with what it is held against."""
    first = next(iter(_rows(curves)), {})
    found = {k.removeprefix(BEFORE): v for k, v in first.items() if k.startswith(BEFORE)}
    return {"student": first["psnr_y_db"], **found} if found else {}


def _series(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    found = {
        row["step"]: row[name]
        for row in rows
        if "step" in row and isinstance(row.get(name), int | float) and math.isfinite(row[name])
    }
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def _thinned(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Means of bins, so that a long noisy curve can be read and stays small."""
    step = max(1, math.ceil(len(xs) / _POINTS))
    starts = range(0, len(xs), step)
    return (
        [statistics.fmean(xs[i : i + step]) for i in starts],
        [statistics.fmean(ys[i : i + step]) for i in starts],
    )
