"""Several finished runs on one page: the same target and precision side by side.

PSNR is held against the first run image by image where both have the same test images; latencies
stand side by side, since runs are not interleaved with each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence
from mipkd.core.measurement import Measurement
from pipeline.bench.comparisons import (
    drop_by_image,
    find_reference,
    mean_of,
    p50_s,
    students,
)
from pipeline.bench.stats import mean_over_images
from pipeline.report.charts import SHAPES
from pipeline.report.plots import COLOURS, Point, scatter
from pipeline.report.results_file import RESULTS, read_results, report_folder
from pipeline.report.tables import Row, Table, sizes_of
from pipeline.report.wording import (
    NONE,
    TO,
    as_size,
    in_ms,
    megabytes,
    milliseconds,
    number,
    precision_label,
    signed,
)
from pipeline.report.write import environment, replace_page


@dataclass(frozen=True)
class Seen:
    """A run under a name that no other here has."""

    name: str
    evidence: Evidence


def read(folders: Sequence[Path]) -> list[Seen]:
    """The results of runs' folders, the first one the base.

    Raises:
        UsageError: a folder without a report, or results of different scales.
    """
    seen: list[Seen] = []
    for folder in folders:
        found = read_results(report_folder(folder) / RESULTS)
        name = found.name
        if name in (one.name for one in seen):
            name = f"{folder.resolve().parent.name}/{name}"
        seen.append(Seen(name, found))
        if found.student.scale != seen[0].evidence.student.scale:
            raise UsageError(
                f"report: {folder} is of scale x{found.student.scale}, {folders[0]} of "
                f"x{seen[0].evidence.student.scale}",
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
    return replace_page(page, out)


def table(seen: Sequence[Seen]) -> Table:
    """A row for each run's model, those of one target and precision together."""
    size = _common(seen)
    at = f" at {as_size(*size)}" if size else ""
    head = ["Target", "Precision", "Run", "On disk", f"p50 ms{at}", "PSNR-Y dB"]
    head += [f"Over {seen[0].name}, dB", "Lost to FP32, mean dB", "Worst image dB", "Verdict"]
    keys = dict.fromkeys(
        (m.target, m.precision) for one in seen for m in students(one.evidence.measurements)
    )
    rows = []
    for key in sorted(keys):
        base = _model(seen[0].evidence, *key)
        for one in seen:
            m = _model(one.evidence, *key)
            if m is not None:
                rows.append(Row("student", _cells(one, m, base, seen[0], size)))
    return Table(head, rows, first=3, last=9)


def _cells(
    one: Seen,
    m: Measurement,
    base: Measurement | None,
    first: Seen,
    size: tuple[int, int] | None,
) -> list[str]:
    drops = drop_by_image(m, find_reference(one.evidence.measurements, m.role))
    return [
        m.target + (f" ({m.kind})" if m.simulated else ""),
        precision_label(m),
        one.name,
        megabytes(m.size_bytes),
        milliseconds(in_ms(p50_s(m, size))),
        number(mean_of(m), 3),
        NONE if one is first else _over(one, m, first, base),
        number(statistics.fmean(drops.values()) if drops else None, 3),
        number(max(drops.values(), default=None), 3),
        one.evidence.verdict.outcome.value,
    ]


def _over(one: Seen, m: Measurement, first: Seen, base: Measurement | None) -> str:
    """The mean difference over images that both have, with its interval."""
    if one.evidence.tests.sha256 != first.evidence.tests.sha256:
        return "other images"
    theirs = {s.image: s.psnr_y_db for s in base.scores} if base else {}
    pairs = [(s.psnr_y_db, theirs.get(s.image, math.nan)) for s in m.scores]
    differences = [ours - other for ours, other in pairs if math.isfinite(ours - other)]
    if len(differences) < 2:
        return NONE
    found = mean_over_images(differences)
    low, high = signed(found.low, 3), signed(found.high, 3)
    return f"{signed(found.value, 3)} ({low} to {high})"


def _plot(seen: Sequence[Seen], size: tuple[int, int]) -> str:
    points = [
        Point(p50, psnr_y_db, f"{one.name} {m.target} {precision_label(m)}", n % COLOURS, shape)
        for n, one in enumerate(seen)
        for m in students(one.evidence.measurements)
        if (psnr_y_db := mean_of(m)) is not None and (p50 := in_ms(p50_s(m, size)))
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
    hosts = {h.id: h.cpu for one in seen for h in [one.evidence.host]}
    if len(hosts) > 1:
        found.append(f"Measured on different machines: {', '.join(hosts.values())}.")
    tests = {one.evidence.tests.sha256: one.evidence.tests.source for one in seen}
    if len(tests) > 1:
        found.append(f"Judged on different test images: {', '.join(tests.values())}.")
    for one in (one for one in seen if TO[one.evidence.tests.against]):
        found.append(f"PSNR-Y of {one.name} is{TO[one.evidence.tests.against]}.")
    found.append(
        "Latencies are each run's own, not interleaved: of one machine they may be apart by 10 % "
        "and more. To tell two models apart: mipkd-pipeline check BUNDLE --baseline BUNDLE."
    )
    return found


def _model(evidence: Evidence, target: str, precision: str) -> Measurement | None:
    found = students(evidence.measurements)
    return next((m for m in found if (m.target, m.precision) == (target, precision)), None)


def _common(seen: Sequence[Seen]) -> tuple[int, int] | None:
    """The largest LR size that every run measured."""
    each = [set(sizes_of(students(one.evidence.measurements))) for one in seen]
    return max(set.intersection(*each), key=math.prod, default=None) if each else None
