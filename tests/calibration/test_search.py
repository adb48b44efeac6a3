"""The search finds the cheapest floats that keep a bound, the same ones each time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from calibration.search import (
    Bounds,
    Found,
    Loss,
    Measured,
    Operation,
    knapsack_floats,
    round_time,
    search,
)

HARMS = {"head": 0.04, "a": 0.001, "b": 0.02, "add": 0.012, "tail": 0.02}
COSTS = {"head": 0.5, "a": 2.0, "b": 2.0, "add": 0.1, "tail": 8.0}
OPERATIONS = tuple(Operation(name, "Conv", name) for name in HARMS)


def loss_of(floats: Iterable[str]) -> Loss:
    """Harms add up, and on the worst crop they are three times as large."""
    left = sum(harm for name, harm in HARMS.items() if name not in set(floats))
    return Loss(left, 3 * left)


def found(bounds: Bounds, forced: frozenset[str] = frozenset(), slack_ms: float = 0.0) -> Found:
    harms = {name: Loss(harm, 3 * harm) for name, harm in HARMS.items()}
    known = Measured(OPERATIONS, harms, COSTS, bounds)
    return search(known, loss_of, forced=forced, slack_ms=slack_ms)


def test_the_most_harm_for_its_time_becomes_float_first() -> None:
    result = found(Bounds(0.05, 1.0))
    assert result.bounds_met
    assert result.best.floats == {"add", "head"}
    assert result.best.loss.mean_db == pytest.approx(0.041)
    assert result.best.extra_ms == pytest.approx(0.6)


def test_the_worst_crop_binds_too() -> None:
    assert found(Bounds(0.05, 0.07)).best.floats == {"add", "head", "b"}


def test_what_is_not_needed_goes_back_to_int8() -> None:
    """A bound of 0.03 is kept by the tail and the head; `b`, tried before it, is not needed."""
    result = found(Bounds(0.0215, 1.0))
    assert result.bounds_met
    assert result.best.floats == {"add", "head", "b"}
    assert found(Bounds(0.0015, 1.0)).best.floats == {"add", "head", "b", "tail"}


def test_of_what_takes_hardly_longer_the_one_that_loses_least_is_taken() -> None:
    assert found(Bounds(0.05, 1.0), slack_ms=2.0).best.floats == {"add", "head", "b"}


def test_nothing_more_is_tried_once_it_is_late() -> None:
    names = [f"op{number:02}" for number in range(64)]
    tried: list[frozenset[str]] = []

    def evaluate(floats: frozenset[str]) -> Loss:
        """Kept with the first 40 as floats, and with none of them in INT8."""
        tried.append(floats)
        return Loss(0.01 if floats.issuperset(names[:40]) else 0.1, 0.0)

    known = Measured(
        [Operation(name, "Conv", "") for name in names],
        {name: Loss(0.01, 0.01) for name in names},
        dict.fromkeys(names, 1.0),
        Bounds(0.05, 1.0),
    )
    result = search(known, evaluate, late=lambda: len(tried) >= 12)
    assert result.bounds_met
    assert len(tried) == 12


def test_what_was_asked_for_stays_float() -> None:
    assert found(Bounds(0.05, 1.0), frozenset({"a"})).best.floats == {"a", "add", "head"}


def test_without_any_that_keeps_the_bound_the_best_comes_back() -> None:
    harms = {name: Loss(harm, harm) for name, harm in HARMS.items()}
    known = Measured(OPERATIONS, harms, COSTS, Bounds(0.001, 1.0))
    broken = search(known, lambda floats: Loss(0.01 + loss_of(floats).mean_db, 0.0))
    assert not broken.bounds_met
    assert broken.best.floats == set(HARMS) - {"a"}


def test_a_bound_that_only_floats_keep_is_kept_by_no_int8() -> None:
    """Everything as a float is FP32 under another name, unless it was asked for."""
    result = found(Bounds(1e-9, 1e-9))
    assert not result.bounds_met
    assert result.best.floats == set(HARMS) - {"a"}
    assert all(one.floats < set(HARMS) for one in result.pareto)
    assert found(Bounds(1e-9, 1e-9), forced=frozenset(HARMS)).bounds_met


def test_the_front_falls_in_loss_as_it_grows_in_time() -> None:
    front = found(Bounds(0.05, 1.0)).pareto
    assert len(front) > 2
    assert [c.extra_ms for c in front] == sorted(c.extra_ms for c in front)
    losses = [c.loss.mean_db for c in front]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)


def test_the_best_is_on_the_front_where_the_worst_crop_decides() -> None:
    """`a` in float helps the worst crop and hurts the mean, in hardly any time: it is taken."""
    harms = {"a": Loss(0.001, 0.1), "b": Loss(0.0, 0.0)}
    known = Measured(OPERATIONS[1:3], harms, {"a": 0.01, "b": 2.0}, Bounds(1.0, 0.5))
    result = search(
        known, lambda floats: Loss(0.02, 0.1) if floats else Loss(0.01, 0.2), slack_ms=0.01
    )
    assert result.best.floats == {"a"}
    assert result.best in result.pareto


def test_noise_of_a_tenth_in_the_timing_rarely_moves_a_cost() -> None:
    assert round_time(1.0) == round_time(1.3) == round_time(0.8)
    assert round_time(1.0, parts=2) == round_time(1.1, parts=2) == round_time(0.92, parts=2)
    assert round_time(4.0) == 4.0


def worth(budget_ms: float, harms: dict[str, float], costs: dict[str, float]) -> list[str]:
    operations = [Operation(name, "Conv", name) for name in harms]
    losses = {name: Loss(harm, harm) for name, harm in harms.items()}
    return knapsack_floats(Measured(operations, losses, costs, Bounds(1, 1)), budget_ms)


def test_a_budget_is_spent_on_what_brings_most_together() -> None:
    """By harm over cost the two small ones come first, and leave no room for the large one."""
    harms = {"small": 0.3, "smaller": 0.2, "large": 1.0}
    costs = {"small": 1.0, "smaller": 1.0, "large": 4.0}
    assert worth(4.5, harms, costs) == ["large"]
    assert worth(5.0, harms, costs) == ["small", "large"]
    assert worth(2.5, harms, costs) == ["small", "smaller"]
    assert worth(0.5, harms, costs) == []


def test_what_harms_nothing_takes_no_time() -> None:
    assert worth(9.0, {"good": 0.1, "idle": -0.1}, {"good": 1.0, "idle": 1.0}) == ["good"]
    assert worth(9.0, {}, {}) == []
