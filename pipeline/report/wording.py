"""How figures are put in words: one way for HTML and Markdown, never a NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mipkd.core.health import BODY_GRADIENT
from mipkd.core.images import ASSUMED_TRUTH_DB
from mipkd.core.precision import order_of

if TYPE_CHECKING:
    from mipkd.core.evidence import Gate
    from mipkd.core.measurement import Against, Measurement
    from mipkd.core.records import QuantPlan
    from pipeline.bench.stats import Estimate
    from pipeline.report.figures import ModelFigures

NONE = "–"
# Behind the name of a metric: what it is to where that is not the truth.
TO: dict[Against, str] = {
    "truth": "",
    "teacher": " to the teacher's image",
    "student": " to the student's own image",
}


def about_reference(against: Against) -> str:
    """What stands for a truth that is not there, in words; "" where there is one."""
    if against == "truth":
        return ""
    whose = "teacher" if against == "teacher" else "student itself"
    return (
        f"The test images are LR frames without truth: what the {whose} makes of them in FP32 "
        f"stands for it. What is lost, in dB, is what a truth {ASSUMED_TRUTH_DB:g} dB from that "
        "image would show."
    )


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Fixed decimals, or a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(value, digits) + 0.0:.{digits}f}{unit}"  # never -0.000


def signed(value: float | None, digits: int) -> str:
    """With its sign, except where it rounds to nothing."""
    if value is None or not math.isfinite(value):
        return NONE
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def share(value: float) -> str:
    """Of a whole, in percent."""
    return f"{100 * value:.0f}\u00a0%"


def percents(one: Estimate) -> str:
    """The ends of a share's interval, in percent."""
    return f"{100 * one.low:.0f} to {100 * one.high:.0f}"


def whose(role: str) -> str:
    """Behind what failed: nothing for the student."""
    return {"student": "", "teacher": " of the teacher"}.get(role, f" of {role}")


def three_digits(value: float | None) -> str:
    """Three digits that count, however small, or a dash for what is not known."""
    return f"{value:.3g}" if value is not None and math.isfinite(value) else NONE


def milliseconds(value: float | None) -> str:
    """Three digits that count."""
    if value is None or not math.isfinite(value):
        return NONE
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{2 if value < 10 else 1}f}" if value >= 1 else f"{value:.3f}"


def with_unit(value: float | None, unit: str) -> str:
    """A gate's figure or bound: a factor, a share in percent, or a number with its unit."""
    if value is None or not unit:
        return NONE
    if unit == "x":
        return number(value, 2, "×")
    if unit.startswith("of "):
        return f"{number(100 * value, 1)}\u00a0% {unit}"
    if unit == "ms":
        return f"{milliseconds(value)} ms"
    return number(value, 3 if unit == "dB" else 2, f" {unit}")


def bound_of(gate: Gate) -> str:
    """A bound as it was set, without zeros at the end."""
    if gate.unit == "x":
        return f"{gate.bound:g}×"
    if gate.unit.startswith("of "):
        return f"{100 * gate.bound:g}\u00a0%"
    return f"{gate.bound:g} {gate.unit}" if gate.unit else NONE


def in_ms(seconds: float | None) -> float | None:
    """Milliseconds."""
    return seconds * 1e3 if seconds is not None else None


def times(value: float) -> str:
    """A factor."""
    return f"{value:.0f}×" if value >= 100 else f"{value:.2f}×"


def interval(one: Estimate) -> str:
    """A factor with its interval."""
    digits = 0 if one.value >= 100 else 2
    return f"{times(one.value)} ({one.low:.{digits}f} to {one.high:.{digits}f})"


def health(name: str, value: float) -> str:
    """A figure of a training's health (`mipkd.core.health`)."""
    words = {
        "reconstruction_error": "reconstruction error of the teacher's features",
        "teacher_share": "teacher's share of the mixed path",
    }
    loss = name.removeprefix(BODY_GRADIENT)
    return f"{words.get(name) or f'share of {loss} in the body gradient'} {share(value)}"


def megabytes(size_bytes: int | None) -> str:
    """Size on disk in MB of 10^6 bytes."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes else NONE


def precision_label(m: Measurement) -> str:
    """The precision that runs, and the one that was asked for where that is another."""
    return m.precision if m.executes == m.precision else f"{m.executes} (asked: {m.precision})"


def kernels(m: Measurement) -> str:
    """Such as "11 of 13 in int8, 2 in bf16"; a dash where the runtime does not tell."""
    if not m.kernels:
        return NONE
    first = m.executes
    others = [f"{m.kernels[p]} in {p}" for p in sorted(m.kernels, key=order_of) if p != first]
    return ", ".join([f"{m.kernels[first]} of {sum(m.kernels.values())} in {first}", *others])


def float_layers(plan: QuantPlan) -> str:
    """What a search found, in words."""
    loss = f"{number(plan.drop_db, 3)} dB on the mean and {number(plan.worst_db, 3)} on the worst"
    kept = "within the bounds" if plan.met else "over the bounds, which no INT8 tried keeps"
    how = f"{plan.counted} stay float, computed in {plan.rest}; ranges: {plan.ranges}. "
    if plan.fixed:
        how = "By the target's fixed recipe; nothing was searched. "
    held = plan.holdout
    photos, pages = (held.photos, held.pages) if held else (0, 0)
    by = f", by the {held.against}'s image" if held and held.against != "truth" else ""
    return (
        f"{how}Predicted loss against the target's own FP32{by}: {loss} of {photos} crops of "
        f"photos and {pages} drawn pages, not calibrated on, that could only refuse a choice, "
        f"{kept}."
    )


def foretold(plan: QuantPlan, models: Sequence[ModelFigures]) -> str:
    """What that means for the test images, in words; "" where nobody knows."""
    asked = ("student", plan.target, "int8")
    found = next((m for m in models if (m.role, m.target, m.precision) == asked), None)
    drop = found.quality["psnr_y"].mean_drop if found and "psnr_y" in found.quality else None
    if found is None or found.foretold_drop is None or drop is None:
        return ""
    figures = f"{number(found.foretold_drop, 3)} dB foretold, {number(drop, 3)} measured"
    return f"As much noise on the test images, by how well each is upscaled: {figures}."


def gigabytes(size_bytes: int) -> str:
    """Memory in GiB."""
    return f"{size_bytes / 2**30:.1f} GiB"


def thousands(value: int | None) -> str:
    """A count with thin groups."""
    return f"{value:,}".replace(",", "\u202f") if value is not None else NONE


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def as_size(height: int, width: int) -> str:
    """Width by height, as people write it."""
    return f"{width}×{height}"


def method_note(losses: Sequence[str]) -> str:
    """Why a student learns by these losses where the user named no method."""
    if list(losses) != ["pixel", "logits"]:
        return ""
    return (
        "They are the default: in our study MiPKD's mixers were behind them at equal time "
        "(docs/decisions/0016)."
    )


def listed(facts: dict[str, object] | Iterable[str]) -> str:
    """One line of a mapping or a list."""
    if isinstance(facts, dict):
        return ", ".join(f"{name} {value}" for name, value in facts.items()) or NONE
    return ", ".join(facts) or NONE
