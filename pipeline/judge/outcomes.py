"""What gates are made with: a bound kept, an interval that decides, and what nobody could judge."""

from __future__ import annotations

from mipkd.core.evidence import Gate, Outcome
from pipeline.bench.stats import Estimate


def by_interval(
    name: str, subject: str, found: Estimate, bound: float, unit: str, reason: str
) -> Gate:
    """PASS above the bound, FAIL below it; an interval that holds the bound is inconclusive."""
    outcome = passes(found.low >= bound)
    if found.low < bound <= found.high:
        outcome, reason = Outcome.INVALID, f"inconclusive: {reason}"
    return Gate(name, subject, outcome, found.value, bound, unit, reason)


def invalid(name: str, subject: str, bound: float, unit: str, reason: str) -> Gate:
    """What could not be judged, and why."""
    return Gate(name, subject, Outcome.INVALID, None, bound, unit, reason)


def passes(well: bool) -> Outcome:
    """PASS or FAIL."""
    return Outcome.PASS if well else Outcome.FAIL
