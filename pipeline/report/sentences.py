"""The verdict, what to ship and what a method brought, each in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from mipkd.core.evidence import Gate, Outcome, Verdict
from mipkd.core.precision import QUANTIZED
from mipkd.core.records import Model, Rival
from pipeline.bench.distillation_gain import NO_GAIN, DistillationGain, TargetGain
from pipeline.report.wording import percents, share, signed, thousands


def verdict_sentence(verdict: Verdict) -> str:
    """May it be shipped, and what?"""
    gates = verdict.gates
    failed = [gate for gate in gates if gate.outcome is Outcome.FAIL]
    unjudged = [gate for gate in gates if gate.outcome is Outcome.INVALID]
    ships = [f"{one.target} {one.precision}" for one in verdict.recommended if one.precision]
    if failed:
        start = f"{'Not all of it' if ships else 'No'}: {_of(failed, gates)} failed"
    elif unjudged:
        start = f"Not proven: {_of(unjudged, gates)} could not be judged"
    else:
        start = f"Yes: all {len(gates)} gates pass" if ships else f"All {len(gates)} gates pass"
    unseen = [one.target for one in verdict.recommended if one.simulated]
    ends = (
        [f"Ship {_and(ships) or 'nothing'}."]
        if ships or len(unseen) < len(verdict.recommended)
        else []
    )
    ends += [f"Not measured on the device: {_and(unseen)}."] if unseen else []
    return f"{start}{_who(failed or unjudged)}. {' '.join(ends)}"


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


def _who(gates: Sequence[Gate]) -> str:
    """The gates by subject, the first three subjects."""
    named: dict[str, list[str]] = {}
    for gate in gates:
        named.setdefault(gate.subject, []).append(gate.name)
    texts = [f"{subject}: {', '.join(names)}" for subject, names in named.items()]
    more = [f"{len(texts) - 3} more"] if len(texts) > 3 else []
    return f" ({'; '.join(texts[:3] + more)})" if texts else ""
