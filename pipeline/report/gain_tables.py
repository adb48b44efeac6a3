"""Did the distillation gain survive? A sentence, a table and a figure a rival."""

from __future__ import annotations

from mipkd.core.records import Model, Rival
from pipeline.bench.distillation_gain import NO_GAIN, Gain, Over
from pipeline.bench.stats import Interval, Ratio
from pipeline.report import schema as s
from pipeline.report.plots import COLOURS, Span, spans
from pipeline.report.tables import Row, Table
from pipeline.report.wording import NONE, interval, number, share, signed, thousands
from targets.base import QUANTIZED


def sentence(found: Over, rival: Rival, student: Model) -> str:
    """Such as "Over scratch: +0.207 dB in FP32; after INT8 on openvino +0.201 dB, 97 % kept"."""
    start = f"Over {rival.name}: "
    if found.fp32_db is None:
        return f"{start}cannot be told: {found.why_not}."
    fp32 = f"{start}{signed(found.fp32_db.mean, 3)} dB in FP32"
    parts = [fp32, *(_after(one) for one in found.on if one.precision in QUANTIZED)]
    if found.fp32_db.low <= 0:
        reach = f"{signed(found.fp32_db.low, 3)} to {signed(found.fp32_db.high, 3)}"
        parts = [f"{fp32} ({reach}): {NO_GAIN}"]
    return "; ".join(parts) + "." + _budget(rival.model, student)


def _after(one: Gain) -> str:
    where = f"after {one.precision.upper()} on {one.target}"
    where += " (simulated)" if one.simulated else ""
    if one.gain_db is None:
        return f"{where} cannot be told: {one.why_not}"
    gain = f"{where} {signed(one.gain_db.mean, 3)} dB"
    kept = one.retained
    if kept is None:
        return f"{gain}, share not told: {one.why_not}"
    return f"{gain}, {share(kept.value)} kept ({_percents(kept)})"


def _budget(rival: Model | None, student: Model) -> str:
    """A warning where the two are not of one size."""
    if rival is None or rival.params == student.params:
        return ""
    theirs, ours = (thousands(model.params or None) for model in (rival, student))
    return f" The budget is not the same: {theirs} parameters, the student {ours}."


def as_interval(found: Interval | Ratio | None) -> s.IntervalResult | None:
    """For `results.json`."""
    if found is None:
        return None
    value = found.mean if isinstance(found, Interval) else found.value
    return s.IntervalResult(value=value, low=found.low, high=found.high)


def gain_result(one: Gain) -> s.GainResult:
    """For `results.json`."""
    speed = one.speed
    return s.GainResult(
        target=one.target,
        precision=one.precision,
        kind="simulated" if one.simulated else "measured",
        images=one.images,
        psnr_y_db=one.psnr_y_db,
        rival_psnr_y_db=one.rival_psnr_y_db,
        gain_db=as_interval(one.gain_db),
        retained=as_interval(one.retained),
        why_not=one.why_not,
        rival_speed=s.RatioResult(
            value=speed.value, low=speed.low, high=speed.high, against=one.precision
        )
        if speed
        else None,
    )


def gain_table(results: s.Results) -> Table:
    """Every rival in FP32, then on every target at every precision."""
    head = ["Target", "Precision", "Over", "PSNR-Y dB", "Rival's PSNR-Y dB", "Gain dB"]
    head += ["Share kept", "Rival's speed, × student's"]
    rows = []
    for rival in results.rivals:
        ours, theirs = (_in_fp32(role, results) for role in ("student", rival.name))
        known = [number(ours, 3), number(theirs, 3), _decibels(rival.fp32_gain_db)]
        cells = ["reference", "fp32", rival.name, *known, NONE, NONE]
        rows.append(Row("reference", cells))
        rows += [Row("rival", _cells(one, rival.name)) for one in rival.gains]
    return Table(head, rows, first=3)


def untold(results: s.Results) -> list[str]:
    """What cannot be told for another reason than that there is no gain to keep."""
    return [
        f"{one.target} {one.precision} over {rival.name}: {one.why_not}"
        for rival in results.rivals
        for one in rival.gains
        if one.why_not not in ("", NO_GAIN)
    ]


def gain_figures(results: s.Results) -> list[tuple[str, str]]:
    """Name and SVG of each rival over which a gain can be told: in FP32, then target by target."""
    found = []
    for rival in results.rivals:
        targets = list(dict.fromkeys(one.target for one in rival.gains))
        drawn = [("reference fp32", rival.fp32_gain_db, 0)]
        drawn += [(_named(one), one.gain_db, 1 + targets.index(one.target)) for one in rival.gains]
        marks = [
            Span(name, gain.value, gain.low, gain.high, colour % COLOURS)
            for name, gain, colour in drawn
            if gain
        ]
        if marks:
            title = f"PSNR-Y of the student over {rival.name}: " + "; ".join(
                f"{mark.name} {signed(mark.value, 3)} dB" for mark in marks
            )
            found.append((rival.name, spans(marks, title=title, x=f"dB over {rival.name}")))
    return found


def _cells(one: s.GainResult, rival: str) -> list[str]:
    target = f"{one.target} (simulated)" if one.kind == "simulated" else one.target
    kept, speed = one.retained, one.rival_speed
    none = "none to keep" if one.why_not == NO_GAIN else NONE
    return [
        target,
        one.precision,
        rival,
        number(one.psnr_y_db, 3),
        number(one.rival_psnr_y_db, 3),
        _decibels(one.gain_db),
        f"{share(kept.value)} ({_percents(kept)})" if kept else none,
        interval(speed.value, speed.low, speed.high) if speed else NONE,
    ]


def _percents(kept: Ratio | s.IntervalResult) -> str:
    return f"{100 * kept.low:.0f} to {100 * kept.high:.0f}"


def _decibels(gain: s.IntervalResult | None) -> str:
    if gain is None:
        return NONE
    return f"{signed(gain.value, 3)} ({signed(gain.low, 3)} to {signed(gain.high, 3)})"


def _named(one: s.GainResult) -> str:
    return f"{one.target} {one.precision}" + (" simulated" if one.kind == "simulated" else "")


def _in_fp32(role: str, results: s.Results) -> float | None:
    found = (m for m in results.measurements if (m.role, m.kind) == (role, "reference"))
    return next((m.quality.psnr_y_db for m in found if m.quality), None)
