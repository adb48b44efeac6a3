"""The search for operations that INT8 leaves float: the least time for a bounded loss.

Each operation has a harm, the loss when it alone is INT8, and a cost, the time it takes longer as
a float. Those with the most harm for their cost become floats first, until what is left keeps the
bound; then those that turn out not to be needed go back, half of them at once, then ever fewer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

log = logging.getLogger(__name__)

Evaluate = Callable[[frozenset[str]], "Loss"]  # of a candidate, by the names of its floats

_FRONT = 6  # candidates beyond the search's own that the Pareto front is drawn through


@dataclass(frozen=True)
class Operation:
    """An operation that INT8 could compute; those with the same `alike` take the same time."""

    name: str
    kind: str
    alike: str
    part: str = ""  # "first convolution", "skip addition" and the like, or ""


@dataclass(frozen=True)
class Loss:
    """PSNR-Y below FP32 over the holdout, in dB."""

    mean_db: float
    worst_db: float


@dataclass(frozen=True)
class Bounds:
    """How much PSNR-Y a candidate may lose."""

    mean_db: float
    worst_db: float

    def hold(self, loss: Loss) -> bool:
        """Whether a candidate keeps both."""
        return loss.mean_db <= self.mean_db and loss.worst_db <= self.worst_db

    def share(self, loss: Loss) -> float:
        """How much of the bounds a loss uses up: 1 when just kept."""
        return max(loss.mean_db / self.mean_db, loss.worst_db / self.worst_db)


@dataclass(frozen=True)
class Measured:
    """What was measured of each operation, by its name."""

    operations: Sequence[Operation]
    harms: Mapping[str, Loss]
    costs_ms: Mapping[str, float]
    bounds: Bounds

    def share(self, name: str) -> float:
        """The share of the bounds that one operation's harm uses up."""
        harm = self.harms[name]
        return harm.mean_db / self.bounds.mean_db + max(harm.worst_db, 0) / self.bounds.worst_db


@dataclass(frozen=True)
class Candidate:
    """One choice of operations that stay float."""

    floats: frozenset[str]
    loss: Loss
    extra_ms: float  # over everything in INT8, by the operations' costs


@dataclass(frozen=True)
class Found:
    """The best candidate, and the Pareto front: all (the best too) that no other beats in both time
    and share of the bounds."""

    best: Candidate
    bounds_met: bool
    pareto: tuple[Candidate, ...]


def search(
    known: Measured,
    evaluate: Evaluate,
    *,
    slack_ms: float = 0.0,
    forced: frozenset[str] = frozenset(),
    late: Callable[[], bool] = lambda: False,
) -> Found:
    """The cheapest candidate found that keeps the bounds, else the one that loses least.

    Of those that take at most `slack_ms` longer than the cheapest, the one that loses least.
    `forced` are floats in any case; beyond them something is always left in INT8. Once `late`
    says so, no further candidate is tried than the search needs to name one that keeps the bounds.
    """
    tried: dict[frozenset[str], Candidate] = {}
    bounds, costs_ms = known.bounds, known.costs_ms

    def attempt(floats: frozenset[str]) -> Candidate:
        if floats not in tried:
            extra = sum(costs_ms[name] for name in floats)
            tried[floats] = Candidate(floats, evaluate(floats), extra)
        return tried[floats]

    order = _by_worth(known, forced)
    # Not all of them: that is FP32 under another name, which no search is needed for.
    prefixes = [forced | frozenset(order[:count]) for count in range(max(1, len(order)))]
    count = _fewest(prefixes, lambda floats: bounds.hold(attempt(floats).loss))
    if count is None:
        return _as_found(tried, tried.values(), bounds, met=False)
    dearest = sorted(order[:count], key=lambda n: (-costs_ms[n], -order.index(n)))
    best = _drop_unneeded(attempt(prefixes[count]), dearest, bounds, attempt, late)
    for step in range(1, _FRONT):
        if not late():
            attempt(prefixes[len(order) * step // _FRONT])
    near = [c for c in tried.values() if c.extra_ms <= best.extra_ms + slack_ms]
    return _as_found(tried, near, bounds, met=True)


def with_remeasured_loss(found: Found, loss: Loss, bounds: Bounds) -> Found:
    """The same, with the best's loss measured again, as it will be built."""
    best = replace(found.best, loss=loss)
    pareto = tuple(best if one == found.best else one for one in found.pareto)
    return Found(best, bounds.hold(loss), pareto)


def knapsack_floats(known: Measured, budget_ms: float) -> list[str]:
    """The floats that bring most for a budget of time, in the graph's order.

    A knapsack, solved exactly and not greedily: the greedy choice spends a little too much on small
    layers and has no room for the last convolution, one of those that harm most.
    """
    worth = {name: known.share(name) for name, harm in known.harms.items() if harm.mean_db > 0}
    unit = min(known.costs_ms.values(), default=1.0)  # costs are powers of two
    best: dict[int, tuple[float, frozenset[str]]] = {0: (0.0, frozenset())}  # by units spent
    for name, brings in worth.items():
        units = round(known.costs_ms[name] / unit)
        for spent, (brought, taken) in sorted(best.items(), reverse=True):
            more = spent + units
            if more * unit <= budget_ms and brought + brings > best.get(more, (0.0, None))[0]:
                best[more] = brought + brings, taken | {name}
    _, taken = max(best.values(), key=lambda found: found[0])
    return [op.name for op in known.operations if op.name in taken]


def round_time(ms: float, *, parts: int = 1) -> float:
    """Round a time above 0 to a power of two, or to one of `parts` steps between two of them.

    So coarse that the noise of timing decides nothing.
    """
    from math import log2

    return float(2 ** (round(parts * log2(ms)) / parts))


def _by_worth(known: Measured, forced: frozenset[str]) -> list[str]:
    """Names by harm over cost, the most first."""
    names = [op.name for op in known.operations]
    names.sort(key=lambda name: known.share(name) / known.costs_ms[name], reverse=True)
    return [name for name in names if name not in forced]


def _drop_unneeded(
    best: Candidate,
    floats: list[str],
    bounds: Bounds,
    attempt: Callable[[frozenset[str]], Candidate],
    late: Callable[[], bool],
) -> Candidate:
    """Give `floats` back to INT8 where the bounds still hold: half of them at once, then fewer."""
    size = (len(floats) + 1) // 2
    while floats and size and not late():
        for start in range(0, len(floats), size):
            if late():
                break
            less = attempt(best.floats - set(floats[start : start + size]))
            if bounds.hold(less.loss):
                best = less
        floats = [name for name in floats if name in best.floats]
        size = min(size // 2, (len(floats) + 1) // 2)
    return best


def _fewest(
    prefixes: Sequence[frozenset[str]], holds: Callable[[frozenset[str]], bool]
) -> int | None:
    """The length of the shortest prefix that holds, taking it that longer ones hold too."""
    low, high = 0, len(prefixes) - 1
    if not holds(prefixes[high]):
        holds(prefixes[low])
        return next(
            (i for i in range(high, -1, -max(1, high // _FRONT)) if holds(prefixes[i])), None
        )
    while low < high:
        middle = (low + high) // 2
        if holds(prefixes[middle]):
            high = middle
        else:
            low = middle + 1
    return high


def _as_found(
    tried: Mapping[frozenset[str], Candidate],
    eligible: Collection[Candidate],
    bounds: Bounds,
    *,
    met: bool,
) -> Found:
    pareto: list[Candidate] = []
    for one in sorted(tried.values(), key=lambda c: (c.extra_ms, bounds.share(c.loss))):
        if not pareto or bounds.share(one.loss) < bounds.share(pareto[-1].loss):
            pareto.append(one)
    best = min(eligible, key=lambda c: (bounds.share(c.loss), c.extra_ms))
    return Found(best, met, tuple(pareto))
