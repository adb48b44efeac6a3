"""The search for operations that INT8 leaves float: the least work for a bounded loss.

What each operation adds to the squared error of each crop is measured once, with it alone in INT8.
Rounding errors of different operations hardly know of each other, so that these sums foretell what
any choice of floats loses. The choice is made on the foretold loss, tried, and made again with what
was foretold wrongly, until it stands; no clock has a say.
Shapes: O operations, N crops.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from calibration.sensitive_layers import PRODUCTS
from mipkd.core.images import psnr_lost

FloatArray = npt.NDArray[np.float64]
Evaluate = Callable[[frozenset[str]], "Loss"]  # of a candidate, by the names of its floats

_FRONT = (4.0, 2.0, 0.5, 0.25)  # of the bounds: candidates that the front is drawn through
_SLACK = 1 / 30  # of all work: a tenth of the time of everything in INT8, 1 % as measured on RLFN
_PARTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the bounds, to lose less for that
_AIMS = (1.0, 0.8, 0.6, 0.4)  # shares of the bounds: each way to them ends at other floats
_LEAST_BOUND = 0.1  # of the bounds: below it a bound is only noise
_MACS_PER_VALUE = 64  # multiply-adds that take as long as moving a value
_POINTWISE = 0.25  # of a value's time: what computes value by value is fused with its neighbours
_FLOAT_OVER_INT8 = 4  # how much longer a float takes, by bytes moved and by lanes of a register


@dataclass(frozen=True)
class Operation:
    """An operation that INT8 could compute, and how much longer it takes as a float."""

    name: str
    kind: str
    work: float  # in values moved, by `estimate_work`
    part: str = ""  # "first convolution", "skip addition" and the like, or ""


@dataclass(frozen=True)
class Loss:
    """PSNR-Y below FP32 over crops, in dB."""

    mean_db: float
    worst_db: float
    margin_db: float = 0.0  # what the mean over another set of images may be higher
    added_mse: float = 0.0  # squared error more, in levels of Y, mean over the photos

    @property
    def upper_db(self) -> float:
        """The mean that other images should keep under: one side of 95 %."""
        return self.mean_db + self.margin_db


@dataclass(frozen=True)
class Bounds:
    """How much PSNR-Y a candidate may lose."""

    mean_db: float
    worst_db: float

    def hold(self, loss: Loss) -> bool:
        """Whether a candidate keeps both, the mean's margin included."""
        return loss.upper_db <= self.mean_db and loss.worst_db <= self.worst_db

    def share(self, loss: Loss) -> float:
        """How much of the bounds a loss uses up: 1 when just kept."""
        return max(loss.upper_db / self.mean_db, loss.worst_db / self.worst_db)


@dataclass(frozen=True)
class Harms:
    """What each operation alone in INT8 adds to the squared error of each crop.

    `added` has shape (O, N) and may be below 0; `errors`, (N,), are those with nothing in INT8.
    The first `photos` crops make the mean.
    """

    operations: Sequence[Operation]
    errors: FloatArray
    added: FloatArray
    photos: int

    def foretell(self, floats: Collection[str]) -> Loss:
        """What a candidate should lose."""
        left = [op.name not in floats for op in self.operations]
        drops = psnr_lost(self.added[left].sum(0), self.errors)
        return Loss(float(drops[: self.photos].mean()), float(drops.max()))

    def alone(self, name: str) -> Loss:
        """What one operation alone in INT8 loses."""
        return self.foretell({op.name for op in self.operations} - {name})

    def choose(
        self, bounds: Bounds, *, forced: frozenset[str] = frozenset(), shift: Loss | None = None
    ) -> frozenset[str]:
        """The floats of least work found with which the bounds should hold; `shift` is added to
        what is foretold.

        Beside `forced` at least one product stays in INT8: without any nothing is quantised.
        """
        found = [self._choose(bounds, aim, forced, shift or Loss(0, 0)) for aim in _AIMS]
        works = [(over > 0, sum_work(self.operations, floats)) for floats, over in found]
        return found[works.index(min(works))][0]

    def _choose(
        self, bounds: Bounds, aim: float, forced: frozenset[str], shift: Loss
    ) -> tuple[frozenset[str], float]:
        """Floats, and by how much they should miss the bounds.

        One after the other becomes float, each time the one that mends most for its work, until
        `aim` times the bounds should hold; then those go back that the bounds do not need.
        """
        float_now = np.array([op.name in forced for op in self.operations])
        free, work = ~float_now, np.array([op.work for op in self.operations])

        def excess(added_KN: FloatArray, part: float = 1.0) -> FloatArray:
            drops = psnr_lost(added_KN, self.errors)
            mean = drops[..., : self.photos].mean(-1) + shift.upper_db
            over = np.maximum(0, (drops + shift.worst_db) / (part * bounds.worst_db) - 1).sum(-1)
            return np.asarray(np.maximum(0, mean / (part * bounds.mean_db) - 1) + over)

        total = self.added[~float_now].sum(0)
        products = np.array([op.kind in PRODUCTS for op in self.operations])
        while excess(total, aim) > 0:
            last = (products & ~float_now).sum() == 1
            (left,) = np.nonzero(~float_now & ~(products & last))
            if not len(left) or (~float_now).sum() == 1:
                break
            mended = excess(total, aim) - excess(total - self.added[left], aim)
            chosen = left[int(np.argmax(mended / work[left]))]
            float_now[chosen] = True
            total = total - self.added[chosen]
        taken = np.nonzero(float_now & free)[0]
        for one in taken[np.argsort(-work[taken], kind="stable")]:
            if excess(total + self.added[one]) <= 0:
                float_now[one] = False
                total = total + self.added[one]
        names = [op.name for op, chosen in zip(self.operations, float_now, strict=True) if chosen]
        return frozenset(names), float(excess(total))


@dataclass(frozen=True)
class Candidate:
    """One choice of operations that stay float, and what it loses on the crops searched on."""

    floats: frozenset[str]
    loss: Loss
    work: float  # of its floats
    confirmed: Loss | None = None  # on crops that had no say, where it was looked at


@dataclass(frozen=True)
class Found:
    """The best candidate, and the Pareto front: it and all that no other beats in both work and
    share of the bounds on the crops searched on."""

    best: Candidate
    bounds_met: bool
    pareto: tuple[Candidate, ...]
    out_of_tries: bool = False  # the search for less work ended with its tries


def search(
    harms: Harms,
    bounds: Bounds,
    evaluate: Evaluate,
    confirm: Evaluate,
    *,
    tries: int,
    forced: frozenset[str] = frozenset(),
) -> Found:
    """The candidate that loses least of those of about the least work that keep the bounds, else of
    all.

    They keep them on the crops searched on, with the mean's margin, and on those that `confirm`
    looks at, which can only refuse one. `forced` are floats in any case. At most `tries` candidates
    are evaluated to find the least work, then those that the front is drawn through.
    """
    tried: dict[frozenset[str], Candidate] = {}
    shift, held = Loss(0, 0), bounds

    def attempt(floats: frozenset[str]) -> Candidate:
        work = sum_work(harms.operations, floats)
        one = tried.get(floats) or Candidate(floats, evaluate(floats), work)
        if one.confirmed is None and bounds.hold(one.loss):
            one = replace(one, confirmed=confirm(floats))
        tried[floats] = one
        return one

    out_of_tries = True
    for _ in range(tries):
        floats = harms.choose(held, forced=forced, shift=shift)
        kept = _kept(tried.values(), bounds)
        if floats in tried or (kept and sum_work(harms.operations, floats) >= kept[0].work):
            out_of_tries = False
            break  # nothing of less work is foretold
        one = attempt(floats)
        shift = _difference(one.loss, harms.foretell(floats))
        held = _tighten(bounds, held, one)
    slack = _SLACK * sum(op.work for op in harms.operations)
    for part in _FRONT:
        attempt(harms.choose(_times(bounds, part), forced=forced, shift=shift))
    if kept := _kept(tried.values(), bounds):
        most = kept[0].work + slack
        fitting = (harms.choose(_times(held, p), forced=forced, shift=shift) for p in _PARTS)
        attempt(next((f for f in fitting if sum_work(harms.operations, f) <= most), kept[0].floats))
    best = _best(tried.values(), bounds, slack)
    if best.confirmed is None:
        best = tried[best.floats] = replace(best, confirmed=confirm(best.floats))
    pareto = _pareto(tried.values(), bounds, best)
    return Found(best, is_kept(best, bounds), pareto, out_of_tries)


def is_kept(one: Candidate, bounds: Bounds) -> bool:
    """Whether it keeps the bounds on both kinds of crops, margins left out."""
    return one.confirmed is not None and _most(one, bounds) <= 1


def remeasure(found: Found, loss: Loss, confirmed: Loss, bounds: Bounds) -> Found:
    """The same, with the best's losses measured again, as it will be built."""
    best = replace(found.best, loss=loss, confirmed=confirmed)
    pareto = tuple(best if one == found.best else one for one in found.pareto)
    return replace(found, best=best, bounds_met=is_kept(best, bounds), pareto=pareto)


def knapsack_floats(harms: Harms, bounds: Bounds, share: float) -> list[str]:
    """The floats that bring most for `share` of the time of everything in INT8, in order.

    A knapsack, solved exactly and not greedily: the greedy choice spends a little too much on small
    layers and has no room for the last convolution, one of those that harm most.
    """
    budget = share * sum(op.work for op in harms.operations) / (_FLOAT_OVER_INT8 - 1)
    units = {op.name: round_up(op.work) for op in harms.operations}
    worth = {op.name: max(0.0, _worth(harms.alone(op.name), bounds)) for op in harms.operations}
    best: dict[float, tuple[float, frozenset[str]]] = {0.0: (0.0, frozenset())}  # by work spent
    for name, brings in worth.items():
        for spent, (brought, taken) in sorted(best.items(), reverse=True):
            more = spent + units[name]
            if more <= budget and brought + brings > best.get(more, (0.0, None))[0]:
                best[more] = brought + brings, taken | {name}
    _, taken = max(best.values(), key=lambda found: found[0])
    return [op.name for op in harms.operations if op.name in taken]


def estimate_work(*, macs: int, values: int) -> float:
    """How much longer an operation takes as a float than in INT8, in values moved.

    From its multiply-adds and the values that it reads and writes: a clock would tell another
    number on a busy machine, and other layers would be chosen there.
    """
    return max(1.0, values + macs / _MACS_PER_VALUE if macs else values * _POINTWISE)


def sum_work(operations: Iterable[Operation], floats: Collection[str]) -> float:
    """The work of a candidate's floats."""
    return sum(op.work for op in operations if op.name in floats)


def float_share(operations: Iterable[Operation], floats: Collection[str]) -> float:
    """The share of the work that a candidate's floats have, 0 to 1."""
    every = list(operations)
    return sum_work(every, floats) / max(1.0, sum(op.work for op in every))


def round_up(work: float) -> float:
    """Round to the next power of two, so that sums have few values."""
    return float(2 ** np.ceil(np.log2(work)))


def _worth(loss: Loss, bounds: Bounds) -> float:
    """The share of the bounds that one operation's harm uses up."""
    return loss.mean_db / bounds.mean_db + max(loss.worst_db, 0) / bounds.worst_db


def _difference(loss: Loss, foretold: Loss) -> Loss:
    """How much more was lost than foretold; the margin belongs to what was lost."""
    mean, worst = loss.mean_db - foretold.mean_db, loss.worst_db - foretold.worst_db
    return Loss(mean, worst, loss.margin_db)


def _tighten(bounds: Bounds, held: Bounds, one: Candidate) -> Bounds:
    """Bounds under what a candidate lost by so much as crops that had no say lost too much."""
    if one.confirmed is None:
        return held
    over_mean = max(0.0, one.confirmed.mean_db - bounds.mean_db)
    over_worst = max(0.0, one.confirmed.worst_db - bounds.worst_db)
    mean_db, worst_db = held.mean_db, held.worst_db
    if over_mean:
        mean_db = max(min(mean_db, one.loss.upper_db) - over_mean, _LEAST_BOUND * bounds.mean_db)
    if over_worst:
        worst_db = max(
            min(worst_db, one.loss.worst_db) - over_worst, _LEAST_BOUND * bounds.worst_db
        )
    return Bounds(mean_db, worst_db)


def _times(bounds: Bounds, part: float) -> Bounds:
    return Bounds(bounds.mean_db * part, bounds.worst_db * part)


def _best(tried: Iterable[Candidate], bounds: Bounds, slack: float) -> Candidate:
    """Of those that surely keep the bounds and have hardly more than the least work the one that
    loses least; without any the one that loses least of all."""
    every = list(tried)
    if kept := _kept(every, bounds):
        near = [one for one in kept if one.work <= kept[0].work + slack]
        return min(near, key=lambda one: (bounds.share(one.loss), one.work))
    return min(every, key=lambda one: (_most(one, bounds), one.work))


def _kept(tried: Iterable[Candidate], bounds: Bounds) -> list[Candidate]:
    """Those that surely keep the bounds and were confirmed, the one of least work first."""
    kept = [one for one in tried if bounds.hold(one.loss) and is_kept(one, bounds)]
    return sorted(kept, key=lambda one: (one.work, bounds.share(one.loss)))


def _most(one: Candidate, bounds: Bounds) -> float:
    """The greater of its shares of the bounds, margins left out."""
    losses = (one.loss, one.confirmed) if one.confirmed else (one.loss,)
    return max(bounds.share(replace(loss, margin_db=0.0)) for loss in losses)


def _pareto(tried: Iterable[Candidate], bounds: Bounds, best: Candidate) -> tuple[Candidate, ...]:
    pareto: list[Candidate] = []
    for one in sorted(tried, key=lambda c: (c.work, bounds.share(c.loss))):
        lowest = min((bounds.share(other.loss) for other in pareto), default=float("inf"))
        if one == best or bounds.share(one.loss) < lowest:
            pareto.append(one)
    return tuple(pareto)
