"""Latency and quality of this machine's runs over time: a line a model, changes, and a page.

`history.jsonl` lies beside the runs' folders; each finished run adds a line for each model.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mipkd.core.codec import decode, encode, parse_json
from mipkd.core.durable import append_lines
from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence
from pipeline.bench.comparisons import mean_of, p50_s, students, valid_sizes
from pipeline.report.plots import Curve, lines
from pipeline.report.wording import in_ms
from pipeline.report.write import environment, replace_page

log = logging.getLogger(__name__)

FILE = "history.jsonl"
_START = b'{"created": '  # of each line
_BEFORE, _AFTER = 5, 3  # runs whose medians are held against each other
_UNITS = {"p50_ms": "p50, ms", "psnr_y_db": "PSNR-Y, dB"}
_LEAST = {"p50_ms": 0.05, "psnr_y_db": 0.02}  # a change: a share of a latency, dB of a PSNR
_SPREAD = 4.0  # and as many times the median deviation of the runs before


@dataclass(frozen=True)
class Line:
    """One model of one run."""

    created: str  # ISO 8601, UTC
    run: str
    commit: str
    host: str  # id of the machine that measured, and its power mode where it has some
    cpu: str
    target: str
    precision: str
    size: str  # LR, at which the latency is
    p50_ms: float | None
    psnr_y_db: float | None
    tests: str  # a hash over the test images
    verdict: str

    @property
    def series(self) -> tuple[str, ...]:
        """What it can be compared with: the same on the same machine and images."""
        return (self.run, self.target, self.precision, self.size, self.host, self.tests)


@dataclass(frozen=True)
class Change:
    """A figure that moved and stayed: medians of the runs before and from there on."""

    at: int  # index of the first line after it
    before: float
    after: float


def lines_of(evidence: Evidence) -> Iterator[Line]:
    """A line for each model of the student that was measured."""
    for m in students(evidence.measurements):
        size = max(valid_sizes(m), key=math.prod, default=None)  # the largest that is valid
        host = m.host or evidence.host
        yield Line(
            created=evidence.created,
            run=evidence.name,
            commit=evidence.commit,
            host=" ".join(filter(None, (host.id, m.conditions.get("power mode")))),
            cpu=host.cpu,
            target=m.target,
            precision=m.precision,
            size=f"{size[1]}x{size[0]}" if size else "",
            p50_ms=in_ms(p50_s(m, size)),
            psnr_y_db=mean_of(m),
            tests=evidence.tests.sha256[:12],
            verdict=evidence.verdict.outcome.value,
        )


def append(evidence: Evidence, file: Path) -> None:
    """Add a run's lines; the file only grows, and one that is none of ours is left alone."""
    if file.exists() and not _may_be_ours(file.read_bytes()):
        log.warning("history: %s was not made by this program: nothing is added", file)
        return
    append_lines(file, [json.dumps(encode(line)) for line in lines_of(evidence)])


def read(file: Path) -> list[Line]:
    """All lines, oldest first; such as cannot be read, of a run that was killed, are left out.

    Raises:
        UsageError: no such file, or no line in it is one of ours.
    """
    try:
        texts = [text for text in file.read_bytes().split(b"\n") if text.strip()]
    except OSError as error:
        raise UsageError(
            f"history: no {FILE} in {file.parent}: {error.strerror}",
            hint="give the folder that holds the runs' folders",
        ) from error
    found = [line for line in map(_parse, texts) if line]
    if texts and not found:
        raise UsageError(
            f"{file}: damaged: no line of a run in it",
            hint="move it away: the next run starts a new one",
        )
    if len(found) < len(texts):
        log.warning("%s: %d lines cannot be read: left out", file, len(texts) - len(found))
    return sorted(found, key=lambda line: line.created)


def _parse(text: bytes) -> Line | None:
    try:
        line = decode(Line, parse_json(text))
    except ValueError:
        return None
    figures = (line.p50_ms, line.psnr_y_db)
    return line if all(v is None or math.isfinite(v) for v in figures) else None


def _may_be_ours(content: bytes) -> bool:
    """Whether a line is a run's, or the file is no more than the first half of one."""
    lines = content.split(b"\n")
    half = len(lines) == 1 and content[: len(_START)] == _START[: len(content)]
    return half or any(map(_parse, lines))


def group_by_series(found: Iterable[Line]) -> dict[tuple[str, ...], list[Line]]:
    """Lines that can be compared, in order of time."""
    series: dict[tuple[str, ...], list[Line]] = {}
    for line in found:
        series.setdefault(line.series, []).append(line)
    return series


def find_changes(values: Sequence[float], figure: str) -> list[Change]:
    """Where a figure moves by more than it scatters, and stays there for as long as is known.

    Each place is judged by the median of up to 5 runs before it and of up to 3 from it on, so
    that one bad run is no change; of places next to each other the largest step counts.
    """
    steps: list[Change] = []
    for at in range(1, len(values)):
        old, new = values[max(0, at - _BEFORE) : at], values[at : at + _AFTER]
        before, after = statistics.median(old), statistics.median(new)
        scatter = statistics.median(abs(v - before) for v in old)
        least = _LEAST[figure] * (before if figure == "p50_ms" else 1)
        if abs(after - before) > max(least, _SPREAD * scatter):
            steps.append(Change(at, before, after))
    found: list[Change] = []
    for step in steps:
        size = abs(values[step.at] - values[step.at - 1])
        if found and step.at - found[-1].at < _AFTER:
            other = found[-1]
            if size > abs(values[other.at] - values[other.at - 1]):
                found[-1] = step
        else:
            found.append(step)
    return found


def describe_change(line: Line, change: Change, figure: str) -> str:
    """A change in words."""
    moved = change.after - change.before
    by = f"{moved / change.before:+.1%}" if figure == "p50_ms" else f"{moved:+.3f} dB"
    unit = "ms" if figure == "p50_ms" else "dB"
    return (
        f"{line.created[:16].replace('T', ' ')} {line.commit[:10]}: {change.before:.3f} to "
        f"{change.after:.3f} {unit} ({by})"
    )


def write_page(found: Sequence[Line], out: Path) -> Path:
    """A page with a plot of each series and figure; its changes in words."""
    panels = [
        {
            "name": one.name,
            "unit": _UNITS[one.figure],
            "plot": Markup(_drawn(one)),
            "cpu": one.lines[-1].cpu,
            "said": one.said,
            "last": f"{one.values[-1]:.3f}",
            "runs": len(one.values),
        }
        for one in _drawable(found)
    ]
    page = environment(html=True).get_template("history.html.j2").render(panels=panels)
    return replace_page(page, out)


def describe_changes(found: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Every change: of which series, and in words."""
    for one in _drawable(found):
        for line in one.said:
            yield one.name, line


@dataclass(frozen=True)
class _Drawable:
    """One figure of one series, of two runs or more."""

    name: str
    figure: str
    lines: list[Line]
    values: list[float]

    @property
    def moved(self) -> list[Change]:
        return find_changes(self.values, self.figure)

    @property
    def said(self) -> list[str]:
        return [
            describe_change(self.lines[change.at], change, self.figure) for change in self.moved
        ]


def _drawable(found: Sequence[Line]) -> Iterator[_Drawable]:
    for (run, target, precision, size, *_), series in group_by_series(found).items():
        for figure in _UNITS:
            kept = [line for line in series if getattr(line, figure) is not None]
            if len(kept) > 1:
                at = f" at LR {size}" if figure == "p50_ms" else ""
                values = [float(getattr(line, figure)) for line in kept]
                yield _Drawable(f"{run}: {target} {precision}{at}", figure, kept, values)


def _drawn(one: _Drawable) -> str:
    unit, xs = _UNITS[one.figure], list(range(1, len(one.values) + 1))
    curves = [Curve(one.name, xs, one.values, 0), *_steps(one.moved, len(xs))]
    return lines(curves, title=f"{one.name}, {unit}", x="run", y=unit)


def _steps(moved: Sequence[Change], count: int) -> Iterator[Curve]:
    """The medians on both sides of each change."""
    for change in moved:
        first, last = max(0, change.at - _BEFORE), min(count, change.at + _AFTER)
        yield Curve("before", [first + 1, change.at], [change.before] * 2, 2)
        yield Curve("after", [change.at + 1, max(last, change.at + 2)], [change.after] * 2, 1)
