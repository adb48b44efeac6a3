"""Gates under the question that they answer, alike ones together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mipkd.core.evidence import Gate, Outcome
from pipeline.report.glossary import Question, question_of, title_of
from pipeline.report.tables import Table, gate_table
from pipeline.report.wording import bound_of, with_unit


@dataclass(frozen=True)
class GateGroup:
    """All gates of one name: those that pass fold into one line, the others never do."""

    title: str
    stopped: tuple[Gate, ...]  # FAIL, then INVALID; those without a figure by their reason
    passed: tuple[Gate, ...]
    line: str  # of those that pass: how many of all, and which is nearest its bound
    table: Table  # of those that pass


def group_gates(gates: Sequence[Gate], question: Question) -> list[GateGroup]:
    """The gates of a question by name, those with a FAIL first, then those with an INVALID."""
    named: dict[str, list[Gate]] = {}
    for gate in gates:
        if question_of(gate.name) == question:
            named.setdefault(gate.name, []).append(gate)
    groups = [_group(name, alike) for name, alike in named.items()]
    return sorted(groups, key=lambda group: min(map(_rank, group.stopped), default=2))


def _group(name: str, alike: Sequence[Gate]) -> GateGroup:
    passed = tuple(gate for gate in alike if gate.outcome is Outcome.PASS)
    stopped = sorted((gate for gate in alike if gate.outcome is not Outcome.PASS), key=_rank)
    line = f"{len(passed)} of {len(alike)} PASS{_nearest(passed)}"
    return GateGroup(title_of(name), tuple(_join(stopped)), passed, line, gate_table(passed))


def _join(stopped: Sequence[Gate]) -> list[Gate]:
    """Those that have no figure and one reason in one line, which names each of them."""
    found: dict[object, Gate] = {}
    for gate in stopped:
        key = (gate.outcome, gate.reason) if gate.figure is None else gate
        same = found.get(key)
        found[key] = replace(same, subject=f"{same.subject}, {gate.subject}") if same else gate
    return list(found.values())


def _rank(gate: Gate) -> int:
    return (Outcome.FAIL, Outcome.INVALID, Outcome.PASS).index(gate.outcome)


def _nearest(passed: Sequence[Gate]) -> str:
    """The figure that is nearest its bound: of those that pass, the worst."""
    known = [(gate, gate.figure) for gate in passed if gate.figure is not None and gate.unit]
    if not known:
        return ""
    gate, figure = min(known, key=lambda pair: abs(pair[1] - pair[0].bound))
    worst = "worst " if len(passed) > 1 else ""
    return f", {worst}{with_unit(figure, gate.unit)} ({gate.subject}), bound {bound_of(gate)}"
