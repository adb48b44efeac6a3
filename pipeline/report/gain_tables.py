"""Did the distillation gain survive? A table, and a plot for each student compared with."""

from __future__ import annotations

from collections.abc import Sequence

from mipkd.core.measurement import Measurement
from pipeline.bench.comparisons import find_against, find_reference, mean_of
from pipeline.bench.distillation_gain import NO_GAIN, DistillationGain, TargetGain
from pipeline.bench.stats import Estimate
from pipeline.report.plots import COLOURS, Span, spans
from pipeline.report.tables import Row, Table
from pipeline.report.wording import NONE, TO, interval, number, percents, share, signed


def gain_table(gains: Sequence[DistillationGain], measurements: Sequence[Measurement]) -> Table:
    """Every rival in FP32, then on every target at every precision."""
    psnr_y = f"PSNR-Y{TO[find_against(measurements)]} dB"
    head = ["Target", "Precision", "Over", psnr_y, f"Rival's {psnr_y}", "Gain dB"]
    head += ["Share kept", "Rival's speed, × student's"]
    rows = []
    for gain in gains:
        references = (find_reference(measurements, role) for role in ("student", gain.rival))
        ours, theirs = (mean_of(m) for m in references)
        known = [number(ours, 3), number(theirs, 3), _decibels(gain.fp32_db)]
        rows.append(Row("reference", ["reference", "fp32", gain.rival, *known, NONE, NONE]))
        rows += [Row("rival", _cells(one, gain.rival)) for one in gain.on]
    return Table(head, rows, first=3)


def list_unknown(gains: Sequence[DistillationGain]) -> list[str]:
    """What cannot be told for another reason than that there is no gain to keep."""
    return [
        f"{one.target} {one.precision} over {gain.rival}: {one.why_not}"
        for gain in gains
        for one in gain.on
        if one.why_not not in ("", NO_GAIN)
    ]


def draw_gains(gains: Sequence[DistillationGain]) -> list[tuple[str, str]]:
    """Name and SVG of each rival over which a gain can be told: in FP32, then target by target."""
    found = []
    for gain in gains:
        targets = list(dict.fromkeys(one.target for one in gain.on))
        drawn = [("reference fp32", gain.fp32_db, 0)]
        drawn += [(_name_gain(one), one.gain_db, 1 + targets.index(one.target)) for one in gain.on]
        marks = [
            Span(name, db.value, db.low, db.high, colour % COLOURS)
            for name, db, colour in drawn
            if db
        ]
        if marks:
            title = f"PSNR-Y of the student over {gain.rival}: " + "; ".join(
                f"{mark.name} {signed(mark.value, 3)} dB" for mark in marks
            )
            found.append((gain.rival, spans(marks, title=title, x=f"dB over {gain.rival}")))
    return found


def _cells(one: TargetGain, rival: str) -> list[str]:
    none = "none to keep" if one.why_not == NO_GAIN else NONE
    return [
        f"{one.target} (simulated)" if one.simulated else one.target,
        one.precision,
        rival,
        number(one.psnr_y_db, 3),
        number(one.rival_psnr_y_db, 3),
        _decibels(one.gain_db),
        f"{share(one.retained.value)} ({percents(one.retained)})" if one.retained else none,
        interval(one.speed) if one.speed else NONE,
    ]


def _decibels(gain: Estimate | None) -> str:
    if gain is None:
        return NONE
    return f"{signed(gain.value, 3)} ({signed(gain.low, 3)} to {signed(gain.high, 3)})"


def _name_gain(one: TargetGain) -> str:
    return f"{one.target} {one.precision}" + (" simulated" if one.simulated else "")
