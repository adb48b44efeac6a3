"""What became of a camera's frames."""

from __future__ import annotations

from mipkd.core.evidence import Evidence
from mipkd.core.measurement import Stream
from pipeline.bench.comparisons import frames_per_second
from pipeline.bench.stats import percentiles
from pipeline.report.figures import Figures
from pipeline.report.tables import Row, Table, role_of, sort_measurements
from pipeline.report.wording import NONE, as_size, milliseconds, precision_label, three_digits

HEAD = ["LR size", "Camera, frames/s", "In flight", "Frames/s", "Age p50 ms", "Age p99 ms"]
HEAD += ["Dropped", "J/frame"]


def stream_table(evidence: Evidence, figures: Figures) -> Table:
    """Frames per second, their age and how many were dropped; no figure stands beside INVALID."""
    rows = []
    for m, _ in sort_measurements(evidence, figures):
        if m.stream:
            names = [m.target, f"{m.role} {precision_label(m)}"]
            kind = "INVALID" if m.stream.invalid_because else role_of(m)
            rows.append(Row(kind, [*names, *stream_cells(m.stream)]))
    return Table(["Target", "Model", *HEAD], rows, first=3)


def stream_cells(stream: Stream) -> list[str]:
    """One stream under `HEAD`."""
    camera = f"{stream.fps:g}" if stream.fps else "as taken"
    about = [as_size(*stream.size), camera, str(stream.in_flight)]
    if stream.invalid_because:
        return [*about, "INVALID", *[NONE] * (len(HEAD) - 4)]
    age = percentiles(stream.age_s)
    return [
        *about,
        f"{frames_per_second(stream).value:.2f}",
        *(milliseconds(1e3 * one.value) for one in (age.p50_s, age.p99_s)),
        f"{stream.dropped} of {stream.given}" if stream.fps else NONE,
        three_digits(stream.joules_per_frame),
    ]


def list_stream_notes(evidence: Evidence) -> list[str]:
    """What the streams' frames were, and why those that are INVALID are."""
    found = [(m, m.stream) for m in evidence.measurements if m.stream]
    notes = [
        f"{stream.pixels}; at most {stream.waiting} frame{'s' * (stream.waiting > 1)} waiting, "
        "the newest"
        for _, stream in found
    ]
    notes += [f"J/frame by {stream.power_from}" for _, stream in found if stream.power_from]
    notes += [
        f"{m.target} {m.precision}: INVALID: {stream.invalid_because}"
        for m, stream in found
        if stream.invalid_because
    ]
    return list(dict.fromkeys(notes))
