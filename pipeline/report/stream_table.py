"""What became of a camera's frames."""

from __future__ import annotations

from collections.abc import Sequence

from mipkd.core.evidence import Evidence
from mipkd.core.measurement import Stream
from pipeline.bench.comparisons import frames_per_second
from pipeline.bench.stats import percentiles
from pipeline.report.figures import Figures
from pipeline.report.tables import Row, Table, role_of, sort_measurements
from pipeline.report.wording import NONE, as_size, milliseconds, precision_label, three_digits

_HEAD = ["LR size", "Camera, frames/s", "In flight", "Frames/s", "Age p50 ms", "Age p99 ms"]
_HEAD += ["Dropped"]


def stream_table(evidence: Evidence, figures: Figures) -> Table:
    """Frames per second, their age and how many were dropped; no figure stands beside INVALID."""
    found = [(m, m.stream) for m, _ in sort_measurements(evidence, figures) if m.stream]
    head, cells = stream_columns([stream for _, stream in found])
    rows = [
        Row(
            "INVALID" if stream.invalid_because else role_of(m),
            [m.target, f"{m.role} {precision_label(m)}", *row],
        )
        for (m, stream), row in zip(found, cells, strict=True)
    ]
    return Table(["Target", "Model", *head], rows, first=3)


def stream_columns(streams: Sequence[Stream]) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of each stream below them; joules where a meter told any."""
    metered = any(stream.power_from for stream in streams)
    rows = [_cells(stream) for stream in streams]
    if metered:
        rows = [
            [*row, three_digits(stream.joules_per_frame)]
            for row, stream in zip(rows, streams, strict=True)
        ]
    return [*_HEAD, *(["J/frame"] if metered else [])], rows


def _cells(stream: Stream) -> list[str]:
    camera = f"{stream.fps:g}" if stream.fps else "as taken"
    about = [as_size(*stream.size), camera, str(stream.in_flight)]
    if stream.invalid_because:
        return [*about, "INVALID", *[NONE] * 3]
    age = percentiles(stream.age_s)
    return [
        *about,
        f"{frames_per_second(stream).value:.2f}",
        *(milliseconds(1e3 * one.value) for one in (age.p50_s, age.p99_s)),
        f"{stream.dropped} of {stream.given}" if stream.fps else NONE,
    ]


def list_stream_notes(evidence: Evidence) -> list[str]:
    """What the streams' frames were, and why those that are INVALID are."""
    found = [(m, m.stream) for m in evidence.measurements if m.stream]
    notes = [f"{stream.pixels}; {describe_queue(stream)}" for _, stream in found]
    notes += [f"J/frame by {stream.power_from}" for _, stream in found if stream.power_from]
    notes += [
        f"{m.target} {m.precision}: INVALID: {stream.invalid_because}"
        for m, stream in found
        if stream.invalid_because
    ]
    return list(dict.fromkeys(notes))


def describe_queue(stream: Stream) -> str:
    """How many frames a driver keeps for who comes late."""
    newest = "the newest frame waits" if stream.waiting == 1 else "the newest frames wait"
    return f"{newest} ({stream.waiting} at most), older ones are dropped"
