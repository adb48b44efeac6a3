"""The report's plots: quality against latency, and the trace of the training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mipkd.core.health import BEFORE, is_health
from mipkd.core.measurement import Against, Measurement
from mipkd.core.precision import FLOATS, QUANTIZED
from mipkd.core.records import QuantPlan
from pipeline.bench.comparisons import find_against, find_reference, mean_of, valid_latency
from pipeline.bench.stats import percentiles
from pipeline.report.curves import read_rows, series
from pipeline.report.plots import COLOURS, Curve, Point, lines, scatter
from pipeline.report.tables import sizes_of
from pipeline.report.wording import TO, as_size, number, precision_label

SHAPES = dict.fromkeys(FLOATS, "square") | dict.fromkeys(QUANTIZED, "diamond") | {"fp32": "circle"}
_NOT_TERMS = {"step", "total", "lr", "seconds", "psnr_y_db", "ssim_y", "grad_norm"}
_POINTS = 240  # of a curve; a longer one is averaged in bins


def quality_against_latency(measurements: Sequence[Measurement]) -> str:
    """PSNR over p50 at the largest LR size, whiskers to p90; "" when nothing was measured."""
    sizes = sizes_of(measurements)
    points = [p for m in measurements if sizes and (p := _point(m, measurements, sizes[-1]))]
    if not points:
        return ""
    size, to = as_size(*sizes[-1]), TO[find_against(measurements)]
    title = f"PSNR-Y{to} against latency at LR {size}: " + "; ".join(
        f"{p.name} {p.x:.3g} ms {number(p.y, 2)} dB" for p in points
    )
    x = f"ms at LR {size}, p50 to p90"
    return scatter(points, title=title, x=x, y=f"PSNR-Y{to}, dB")


def front(plan: QuantPlan) -> str:
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
    size = as_size(*plan.size)
    title = (
        f"{plan.target}: PSNR-Y lost, on the crops chosen on, against latency at LR {size}: "
        + "; ".join(f"{p.name} {p.x:.3g} ms {number(p.y, 3)} dB" for p in points)
    )
    return scatter(points, title=title, x=f"ms at LR {size}", y="PSNR-Y lost, dB")


def bicubic_note(measurements: Sequence[Measurement]) -> str:
    """Bicubic's PSNR in words: as a point it would squeeze all others together."""
    bicubic = find_reference(measurements, "bicubic")
    psnr_y_db, to = mean_of(bicubic), TO[find_against(measurements)]
    return f"Bicubic: {number(psnr_y_db, 2)} dB{to}." if psnr_y_db is not None else ""


@dataclass(frozen=True)
class Trace:
    """The training as SVGs, each "" when there is nothing to draw, and the losses' legend."""

    losses: str = ""
    psnr: str = ""
    legend: tuple[tuple[str, int], ...] = ()  # name, colour


def training(metrics: Path | None, against: Against = "truth") -> Trace:
    """The curves of a `metrics.jsonl`: one JSON object a line with `step` and figures."""
    rows = read_rows(metrics) if metrics else []
    terms = [name for name in dict.fromkeys(k for row in rows for k in row) if _is_term(name)]
    curves = [
        Curve(name, *_thin(*series(rows, name)), colour % COLOURS)
        for colour, name in enumerate(["total", *terms])
    ]
    curves = [curve for curve in curves if len(curve.xs) > 1 and max(curve.ys) > 0]
    losses = psnr = ""
    if curves:
        log = min(y for curve in curves for y in curve.ys) >= 0  # dB may be below 0
        y = "loss (log scale)" if log else "loss"
        losses = lines(curves, title="Losses over the steps", x="step", y=y, log=log)
    steps, psnr_db = series(rows, "psnr_y_db")
    if len(steps) > 1:
        title = f"Validation PSNR-Y{TO[against]}, from {psnr_db[0]:.2f} to {psnr_db[-1]:.2f} dB"
        curve = Curve("validation PSNR-Y", steps, psnr_db, 0)
        psnr = lines([curve], title=title, x="step", y=f"PSNR-Y{TO[against]}, dB")
    return Trace(losses, psnr, tuple((c.name, c.colour) for c in curves))


def _is_term(name: str) -> bool:
    return name not in _NOT_TERMS and not is_health(name) and not name.startswith((BEFORE, "_"))


def _point(
    m: Measurement, measurements: Sequence[Measurement], size: tuple[int, int]
) -> Point | None:
    """The student with the pixels it made; the teacher with its reference quality, hollow, where
    that is not its distance to itself."""
    if m.role not in ("student", "teacher") or m.role == find_against(measurements):
        return None  # rivals have figures of their own
    latency = valid_latency(m, size)
    psnr_y_db = mean_of(m)
    if psnr_y_db is None:
        psnr_y_db = mean_of(find_reference(measurements, m.role))
    if latency is None or psnr_y_db is None:
        return None
    targets = list(dict.fromkeys(one.target for one in measurements if one.latencies))
    found = percentiles(latency.samples_s)
    return Point(
        x=found.p50_s.value * 1e3,
        y=psnr_y_db,
        name=f"{m.target} {precision_label(m)}" + (" teacher" if m.role == "teacher" else ""),
        colour=targets.index(m.target) % COLOURS,
        shape=SHAPES.get(m.precision, "circle"),
        hollow=m.role == "teacher",
        reach=found.p90_s.value * 1e3,
    )


def _thin(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Means of bins, so that a long noisy curve can be read and stays small."""
    step = max(1, math.ceil(len(xs) / _POINTS))
    starts = range(0, len(xs), step)
    return (
        [statistics.fmean(xs[i : i + step]) for i in starts],
        [statistics.fmean(ys[i : i + step]) for i in starts],
    )
