"""The verdict, what to ship and what a method brought, each in a sentence."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from mipkd.core.evidence import Gate, Outcome, Verdict
from mipkd.core.precision import QUANTIZED
from mipkd.core.records import Model, Rival
from pipeline.bench.distillation_gain import NO_GAIN, DistillationGain, TargetGain
from pipeline.report.glossary import title_of
from pipeline.report.wording import bound_of, percents, share, signed, thousands, with_unit

_LONGEST = 120  # letters of a reason within a sentence


def answer(verdict: Verdict) -> str:
    """May it be shipped? In a few words."""
    ships = any(one.precision for one in verdict.recommended)
    seen = any(not one.simulated for one in verdict.recommended)
    if verdict.outcome is Outcome.PASS:
        if seen:
            return "Yes, you may ship it." if ships else "Not yet: nothing to ship was found."
        return "Not yet: no device was measured."
    if verdict.outcome is Outcome.FAIL:
        return "Part of it may be shipped." if ships else "No, do not ship it."
    return "Part of it may be shipped; the rest is not proven." if ships else "Not proven yet."


def reason(verdict: Verdict) -> str:
    """Why, in one line: what failed, else what could not be judged, else that all pass."""
    gates = verdict.gates
    failed = [gate for gate in gates if gate.outcome is Outcome.FAIL]
    unjudged = [gate for gate in gates if gate.outcome is Outcome.INVALID]
    if failed:
        return f"{_of(failed, gates)} failed: {_name_first(failed)}."
    if unjudged:
        return f"{_of(unjudged, gates)} could not be judged: {_name_first(unjudged)}."
    return f"All {len(gates)} gates pass."


def verdict_sentence(verdict: Verdict) -> str:
    """Answer, reason, and what to ship."""
    ships = [f"{one.target} {one.precision}" for one in verdict.recommended if one.precision]
    said = f"{answer(verdict)} {reason(verdict)}"
    return f"{said} Ship {_and(ships)}." if ships else said


def describe_gate(gate: Gate) -> str:
    """Such as "quality lost, worst image, openvino int8: 0.610 dB (bound 0.5 dB)"."""
    title = f"{title_of(gate.name)}, {gate.subject}"
    if gate.figure is None or not gate.unit:
        return title
    return f"{title}: {with_unit(gate.figure, gate.unit)} (bound {bound_of(gate)})"


def gain_sentence(found: DistillationGain, rival: Rival, student: Model) -> str:
    """Such as "Over scratch: +0.207 dB in FP32; after INT8 on openvino +0.201 dB, 97 % kept"."""
    start = f"Over {rival.name}: "
    if found.fp32_db is None:
        return f"{start}cannot be told: {found.why_not}."
    fp32 = f"{start}{signed(found.fp32_db.value, 3)} dB in FP32"
    parts = [fp32, *(_after(one) for one in found.on if one.precision in QUANTIZED)]
    if found.fp32_db.low <= 0:
        reach = f"{signed(found.fp32_db.low, 3)} to {signed(found.fp32_db.high, 3)}"
        parts = [f"{fp32} ({reach}): {NO_GAIN}"]
    return "; ".join(parts) + "." + _budget(rival.model, student)


def _after(one: TargetGain) -> str:
    where = f"after {one.precision.upper()} on {one.target}"
    where += " (simulated)" if one.simulated else ""
    if one.gain_db is None:
        return f"{where} cannot be told: {one.why_not}"
    gain = f"{where} {signed(one.gain_db.value, 3)} dB"
    kept = one.retained
    if kept is None:
        return f"{gain}, share not known: {one.why_not}"
    return f"{gain}, {share(kept.value)} kept ({percents(kept)})"


def _budget(rival: Model | None, student: Model) -> str:
    """A warning where the two are not of one size."""
    if rival is None or rival.params == student.params:
        return ""
    theirs, ours = (thousands(model.params or None) for model in (rival, student))
    return f" The budget is not the same: {theirs} parameters, the student {ours}."


def _and(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _of(some: Sequence[Gate], every: Sequence[Gate]) -> str:
    return f"{len(some)} of {len(every)} gates"


def _name_first(gates: Sequence[Gate]) -> str:
    """The first of them, and how many more; those on the student itself concern every target."""
    first = min(gates, key=lambda gate: gate.subject != "student")
    more = f"; and {len(gates) - 1} more" if len(gates) > 1 else ""
    why = f": {textwrap.shorten(first.reason, _LONGEST, placeholder=' ...')}"
    return describe_gate(first) + (why if first.figure is None else "") + more
