"""May it be shipped, target by target: the first thing on page, terminal and pull request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mipkd.core.evidence import Evidence, Gate, Outcome, Recommendation
from pipeline.report.figures import Figures, Shipping
from pipeline.report.glossary import title_of


@dataclass(frozen=True)
class Answer:
    """What to ship for one target on which something ran, or why nothing."""

    target: str
    kind: Literal["ship", "none", "open"]  # open: nothing failed, and not all could be judged
    what: str  # such as "ship int8"
    summary: str  # size, speed and quality of what is shipped, or what stands in its way
    why: str  # why this precision, or what each one is stopped by
    file: str  # in the run's folder; empty when nothing may be shipped


def list_answers(evidence: Evidence, figures: Figures) -> list[Answer]:
    """One a target, without those that were only simulated."""
    gates = evidence.verdict.gates
    pairs = zip(evidence.verdict.recommended, figures.shipping, strict=True)
    return [_answer(one, ships, gates) for one, ships in pairs if not one.simulated]


def _answer(one: Recommendation, ships: Shipping, gates: Sequence[Gate]) -> Answer:
    if one.precision:
        what = f"ship {one.precision}"
        return Answer(one.target, "ship", what, ships.summary, one.reason, ships.file)
    stopped = [gate for gate in gates if gate.outcome is not Outcome.PASS]
    if any(gate.subject == "student" for gate in stopped):  # the verdict's reason names it
        return Answer(one.target, _kind(stopped), "ship nothing", "", "", "")
    here = [gate for gate in stopped if gate.subject.split()[0] == one.target]
    kind = _kind(here)
    what = "not proven" if kind == "open" else "ship nothing"
    return Answer(one.target, kind, what, one.reason, _stopped_by(here), "")


def _kind(stopped: Sequence[Gate]) -> Literal["none", "open"]:
    """Whether anything failed there; where no gate stopped it, something else did."""
    invalid = {gate.outcome for gate in stopped} == {Outcome.INVALID}
    return "open" if invalid else "none"


def _stopped_by(gates: Sequence[Gate]) -> str:
    """Such as "int8: quality lost, mean FAIL"; precisions that the same stops together."""
    stops: dict[str, list[str]] = {}
    for gate in gates:
        precision = gate.subject.partition(" ")[2]
        stops.setdefault(precision, []).append(f"{title_of(gate.name)} {gate.outcome.value}")
    alike: dict[str, list[str]] = {}
    for precision, named in stops.items():
        alike.setdefault(", ".join(named), []).append(precision)
    return "; ".join(f"{', '.join(named)}: {what}" for what, named in alike.items())
