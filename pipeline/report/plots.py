"""Plots as inline SVG: axes, points with labels that keep clear of each other, curves.

Colours come from the page's style by class (`c0` to `c5`), so that a plot follows light, dark
and print. Units of drawing are pixels of a 520 x 340 view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mipkd.core.names import printable

COLOURS = 6
_WIDTH, _HEIGHT = 520, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 46
_LETTER = 8.2  # width of a letter of a label, in a wide font


@dataclass(frozen=True)
class Point:
    """A mark with its name; `reach` is a second x that a whisker goes to."""

    x: float
    y: float
    name: str
    colour: int
    shape: str  # "circle", "square" or "diamond"
    hollow: bool = False
    reach: float | None = None


@dataclass(frozen=True)
class Curve:
    """A named line."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int


@dataclass(frozen=True)
class Span:
    """A named figure with its interval."""

    name: str
    value: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True)
class _Axis:
    """From values to pixels; `ticks` are values."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        low, high, value = (
            (math.log10(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def scatter(points: Sequence[Point], *, title: str, x: str, y: str) -> str:
    """Points over a logarithmic x axis when they span a factor of 8 or more."""
    xs = [v for p in points for v in (p.x, p.reach) if v is not None]
    log = min(xs) > 0 and max(xs) / min(xs) >= 8
    across = _axis(xs, _LEFT, _WIDTH - _RIGHT, log=log, pad=0.12)
    up = _axis([p.y for p in points], _HEIGHT - _BOTTOM, _TOP, pad=0.22)
    marks = [_mark(p, across, up) for p in points]
    return _svg(
        title,
        _frame(across, up, x + (" (log scale)" if log else ""), y),
        _labels(points, across, up),
        marks,
    )


def lines(curves: Sequence[Curve], *, title: str, x: str, y: str, log: bool = False) -> str:
    """Curves; their names stand in the page's legend."""
    curves = [c for c in curves if c.xs]
    values = [v for c in curves for v in c.ys if v > 0 or not log]
    across = _axis([v for c in curves for v in c.xs], _LEFT, _WIDTH - _RIGHT, pad=0)
    up = _axis(values, _HEIGHT - _BOTTOM, _TOP, log=log, pad=0.06)
    paths = [
        f'<polyline class="curve c{c.colour}" points="'
        + " ".join(
            f"{across.at(px):.1f},{up.at(py):.1f}"
            for px, py in zip(c.xs, c.ys, strict=True)
            if py > 0 or not log
        )
        + '"/>'
        for c in curves
    ]
    return _svg(title, _frame(across, up, x, y), paths, [])


def spans(found: Sequence[Span], *, title: str, x: str) -> str:
    """Intervals one above the other, with a line at zero."""
    names = max(124.0, *(10 + len(s.name) * _LETTER for s in found))
    values = [0.0, *(v for s in found for v in (s.low, s.high))]
    across = _axis(values, names + 8, _WIDTH - _RIGHT, pad=0.08)
    up = _Axis(0, len(found), _TOP, _HEIGHT - _BOTTOM, False, ())
    up_frame = _Axis(0, 1, _HEIGHT - _BOTTOM, _TOP, False, ())
    parts = [
        f'<line class="zero" x1="{across.at(0):.1f}" y1="{_TOP}" x2="{across.at(0):.1f}" '
        f'y2="{_HEIGHT - _BOTTOM}"/>'
    ]
    for row, span in enumerate(found):
        y, look = up.at(row + 0.5), f"c{span.colour % COLOURS}"
        ends = f'x1="{across.at(span.low):.1f}" x2="{across.at(span.high):.1f}"'
        parts.append(f'<line class="whisker {look}" {ends} y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<circle class="mark {look}" cx="{across.at(span.value):.1f}" cy="{y:.1f}" r="5.5"/>'
        )
        parts.append(_text(names, y + 4, span.name, "end", f"label {look}"))
    return _svg(title, _frame(across, up_frame, x, ""), parts)


def _axis(
    values: Iterable[float], start: float, end: float, *, log: bool = False, pad: float
) -> _Axis:
    values = list(values)
    low, high = min(values), max(values)
    if log:
        if low == high:
            low, high = low / 1.5, high * 1.5
        room = (high / low) ** pad
        low, high = low / room, high * room
        return _Axis(low, high, start, end, True, _log_ticks(low, high))
    if low == high:
        low, high = low - max(abs(low), 1) * 0.01, high + max(abs(high), 1) * 0.01
    room = (high - low) * pad
    low, high = low - room, high + room
    return _Axis(low, high, start, end, False, _ticks(low, high))


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """About five round values."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return tuple(step * i for i in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = tuple(f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high)
        if len(found) >= 3:
            return found
    return found or (low, high)


def _frame(across: _Axis, up: _Axis, x: str, y: str) -> list[str]:
    """Grid, tick labels and axis titles."""
    parts = []
    for value in across.ticks:
        at = across.at(value)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" y1="{up.end}" x2="{at:.1f}" y2="{up.start}"/>'
        )
        parts.append(_text(at, up.start + 17, _tick(value, across), "middle", "tick"))
    for value in up.ticks:
        at = up.at(value)
        ends = f'x1="{across.start}" y1="{at:.1f}" x2="{across.end}" y2="{at:.1f}"'
        parts.append(f'<line class="grid" {ends}/>')
        parts.append(_text(across.start - 7, at + 4, _tick(value, up), "end", "tick"))
    middle = (across.start + across.end) / 2
    parts.append(_text(middle, _HEIGHT - 8, x, "middle", "title"))
    turn = f'transform="rotate(-90 14 {(up.start + up.end) / 2:.0f})"'
    parts.append(_text(14, (up.start + up.end) / 2, y, "middle", "title", turn))
    return parts


def _tick(value: float, axis: _Axis) -> str:
    if axis.log or len(axis.ticks) < 2:
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    step = axis.ticks[1] - axis.ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}"


def _mark(p: Point, across: _Axis, up: _Axis) -> str:
    x, y = across.at(p.x), up.at(p.y)
    look = f'class="mark c{p.colour}{" hollow" if p.hollow else ""}"'
    shape = {
        "square": f'<rect {look} x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>',
        "diamond": f'<path {look} d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>',
    }.get(p.shape, f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>')
    whisker = ""
    if p.reach is not None:
        whisker = (
            f'<line class="whisker c{p.colour}" x1="{x:.1f}" y1="{y:.1f}" '
            f'x2="{across.at(p.reach):.1f}" y2="{y:.1f}"/>'
        )
    return f"<g>{whisker}{shape}<title>{_escape(p.name)}</title></g>"


# Where a label may stand: offset of its anchor from the mark, and which end the anchor is.
_ROWS = (4, -12, 20, -28, 36, -44, 52, -60, 68, -76, 84)
_PLACES = [(dx, dy, anchor) for dy in _ROWS for dx, anchor in ((11, "start"), (-11, "end"))]
_SHARE = {"start": 0.0, "end": 1.0}
_NEAR = 0.12  # of an overlap, in pixels squared: how a pixel away from the mark weighs


def _labels(points: Sequence[Point], across: _Axis, up: _Axis) -> list[str]:
    """Each name near its mark where it covers least, with a line to the mark if far from it."""
    taken = []
    for p in points:
        x, y = across.at(p.x), up.at(p.y)
        taken.append((x - 8, y - 8, x + 8, y + 8))
        if p.reach is not None:
            taken.append((x, y - 2, across.at(p.reach), y + 2))
    parts = []
    for p in sorted(points, key=lambda p: p.x):
        x, y = across.at(p.x), up.at(p.y)
        wide = len(p.name) * _LETTER
        places = []
        for dx, dy, anchor in _PLACES:
            left = x + dx - wide * _SHARE[anchor]
            box = (left, y + dy - 11, left + wide, y + dy + 3)
            cost = sum(_overlap(box, t) for t in taken) + _NEAR * abs(dy - 4) ** 1.5
            places.append((_outside(box), cost, anchor, box))
        _, _, anchor, box = min(places, key=lambda place: place[:2])
        taken.append(box)
        at, middle = box[0] + wide * _SHARE[anchor], (box[1] + box[3]) / 2
        if abs(middle - y) > 18:
            ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{at:.1f}" y2="{middle:.1f}"'
            parts.append(f'<line class="lead c{p.colour}" {ends}/>')
        parts.append(_text(at, box[3] - 3, p.name, anchor, f"label c{p.colour}"))
    return parts


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _outside(box: _Box) -> bool:
    return box[0] < _LEFT or box[2] > _WIDTH or box[1] < 0 or box[3] > _HEIGHT - _BOTTOM + 4


def _overlap(a: _Box, b: _Box) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _text(x: float, y: float, text: str, anchor: str, look: str, more: str = "") -> str:
    return (
        f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>'
        f"{_escape(text)}</text>"
    )


def _svg(title: str, *layers: Sequence[str]) -> str:
    drawn = "".join(part for layer in layers for part in layer)
    view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_escape(title)}"'
    return f"<svg {view}>{drawn}</svg>"


def _escape(text: str) -> str:
    """Text from outside within SVG."""
    return escape(printable(text))
