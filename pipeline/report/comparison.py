"""Several finished runs on one page: the same target and precision side by side.

PSNR is held against the first run image by image where both have the same test images; latencies
stand side by side, since runs are not interleaved with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mipkd.core.errors import UsageError
from pipeline.bench.stats import mean_over_images
from pipeline.report.charts import SHAPES
from pipeline.report.figures import load
from pipeline.report.plots import COLOURS, Point, scatter
from pipeline.report.schema import MeasurementResult, Results
from pipeline.report.tables import Row, Table
from pipeline.report.wording import NONE, as_size, milliseconds, number, signed
from pipeline.report.write import RESULTS, environment, report_folder


@dataclass(frozen=True)
class Seen:
    """A run under a name that no other here has."""

    name: str
    results: Results


def read(folders: Sequence[Path]) -> list[Seen]:
    """The results of runs' folders, the first one the base.

    Raises:
        UsageError: a folder without a report, or results of different scales.
    """
    seen: list[Seen] = []
    for folder in folders:
        found = load(report_folder(folder) / RESULTS)
        name = found.run.name
        if name in (one.name for one in seen):
            name = f"{folder.resolve().parent.name}/{name}"
        seen.append(Seen(name, found))
        if found.student.scale != seen[0].results.student.scale:
            raise UsageError(
                f"report: {folder} is of scale x{found.student.scale}, {folders[0]} of "
                f"x{seen[0].results.student.scale}",
                hint="compare runs of one scale",
            )
    return seen


def write_page(seen: Sequence[Seen], out: Path) -> Path:
    """One page with a table, a plot and each run's facts."""
    size = _common(seen)
    page = (
        environment(html=True)
        .get_template("comparison.html.j2")
        .render(
            seen=seen,
            table=table(seen),
            plot=Markup(_plot(seen, size)) if size else "",
            size=as_size(*size) if size else "",
            remarks=_remarks(seen),
        )
    )
    out.write_text(page)
    return out


def table(seen: Sequence[Seen]) -> Table:
    """A row for each run's model, those of one target and precision together."""
    size = _common(seen)
    at = f" at {as_size(*size)}" if size else ""
    head = ["Target", "Precision", "Run", "On disk", f"p50 ms{at}", "PSNR-Y dB"]
    head += [f"Over {seen[0].name}, dB", "Mean drop dB", "Worst drop dB", "Verdict"]
    keys = dict.fromkeys((m.target, m.precision) for one in seen for m in _students(one.results))
    rows = []
    for key in sorted(keys):
        base = _model(seen[0].results, *key)
        for one in seen:
            m = _model(one.results, *key)
            if m is not None:
                rows.append(Row("student", _cells(one, m, base, seen[0], size)))
    return Table(head, rows, first=3, last=9)


def _cells(
    one: Seen,
    m: MeasurementResult,
    base: MeasurementResult | None,
    first: Seen,
    size: tuple[int, int] | None,
) -> list[str]:
    quality = m.quality
    return [
        m.target + (" (simulated)" if m.kind == "simulated" else ""),
        m.precision,
        one.name,
        f"{m.size_bytes / 1e6:.2f} MB" if m.size_bytes else NONE,
        milliseconds(_p50(m, size)),
        number(quality.psnr_y_db if quality else None, 3),
        NONE if one is first else _over(one, m, first, base),
        number(quality.mean_drop_db if quality else None, 3),
        number(quality.worst_drop_db if quality else None, 3),
        one.results.verdict.outcome,
    ]


def _over(one: Seen, m: MeasurementResult, first: Seen, base: MeasurementResult | None) -> str:
    """The mean difference over images that both have, with its interval."""
    if one.results.tests.sha256 != first.results.tests.sha256:
        return "other images"
    if not (base and base.quality and m.quality):
        return NONE
    theirs = {i.image: i.psnr_y_db for i in base.quality.images}
    differences = [
        i.psnr_y_db - before
        for i in m.quality.images
        if i.psnr_y_db is not None and (before := theirs.get(i.image)) is not None
    ]
    if len(differences) < 2:
        return NONE
    found = mean_over_images(differences)
    low, high = signed(found.low, 3), signed(found.high, 3)
    return f"{signed(found.mean, 3)} ({low} to {high})"


def _plot(seen: Sequence[Seen], size: tuple[int, int]) -> str:
    points = [
        Point(p50, m.quality.psnr_y_db, f"{one.name} {m.target} {m.precision}", n % COLOURS, shape)
        for n, one in enumerate(seen)
        for m in _students(one.results)
        if m.quality and (p50 := _p50(m, size))
        for shape in [SHAPES.get(m.precision, "circle")]
    ]
    if not points:
        return ""
    title = f"PSNR-Y against latency at LR {as_size(*size)}: " + "; ".join(
        f"{p.name} {p.x:.3g} ms {number(p.y, 2)} dB" for p in points
    )
    return scatter(points, title=title, x=f"p50, ms at LR {as_size(*size)}", y="PSNR-Y, dB")


def _remarks(seen: Sequence[Seen]) -> list[str]:
    """What keeps the runs from being one measurement."""
    found = []
    hosts = {h.id: h.cpu for one in seen for h in [one.results.host]}
    if len(hosts) > 1:
        found.append(f"Measured on different machines: {', '.join(hosts.values())}.")
    tests = {one.results.tests.sha256: one.results.tests.source for one in seen}
    if len(tests) > 1:
        found.append(f"Judged on different test images: {', '.join(tests.values())}.")
    found.append(
        "Latencies are each run's own, not interleaved: of one machine they may be apart by 10 % "
        "and more. To tell two models apart: mipkd-pipeline check BUNDLE --baseline BUNDLE."
    )
    return found


def _students(results: Results) -> list[MeasurementResult]:
    return [m for m in results.measurements if m.role == "student" and m.kind != "reference"]


def _model(results: Results, target: str, precision: str) -> MeasurementResult | None:
    found = (m for m in _students(results) if (m.target, m.precision) == (target, precision))
    return next(found, None)


def _p50(m: MeasurementResult, size: tuple[int, int] | None) -> float | None:
    found = (o for o in m.latencies if (o.height, o.width) == size and not o.invalid_because)
    return next((one.p50_ms for one in found), None)


def _common(seen: Sequence[Seen]) -> tuple[int, int] | None:
    """The largest LR size that every run measured."""
    each = [
        {(o.height, o.width) for m in _students(one.results) for o in m.latencies} for one in seen
    ]
    common = set.intersection(*each) if each else set()
    return max(common, key=lambda size: size[0] * size[1], default=None)
