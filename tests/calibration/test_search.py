"""The search finds floats of little work that keep a bound, the same ones each time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from calibration.search import (
    Bounds,
    Found,
    Harms,
    Loss,
    Operation,
    estimate_work,
    float_share,
    knapsack_floats,
    search,
)

HARMS = {"head": 0.04, "a": 0.001, "b": 0.02, "add": 0.012, "tail": 0.02}
WORKS = {"head": 0.5, "a": 2.0, "b": 2.0, "add": 0.1, "tail": 8.0}


def harms(
    of: dict[str, float] = HARMS, works: dict[str, float] = WORKS, worst: float = 3.0
) -> Harms:
    """Two photos with the harms given, in dB, and a page where they are `worst` times as high."""
    operations = [Operation(name, "Conv", works[name]) for name in of]
    added = [[10 ** (db * k / 10) - 1 for k in (1, 1, worst)] for db in of.values()]
    return Harms(operations, np.ones(3), np.array(added).reshape(-1, 3), photos=2)


def loss_of(floats: Iterable[str], more: float = 0.0) -> Loss:
    """Harms add up, and on the worst crop they are three times as large."""
    left = sum(harm for name, harm in HARMS.items() if name not in set(floats)) + more
    return Loss(left, 3 * left)


def found(bounds: Bounds, forced: frozenset[str] = frozenset(), more: float = 0.0) -> Found:
    confirm = {"mean_db": 0.0, "worst_db": 0.0}
    return search(
        harms(),
        bounds,
        lambda f: loss_of(f, more),
        lambda f: Loss(**confirm),
        tries=9,
        forced=forced,
    )


def test_floats_of_little_work_that_harm_much_are_chosen() -> None:
    result = found(Bounds(0.05, 1.0))
    assert result.bounds_met
    assert result.best.floats == {"add", "head"}
    assert result.best.loss.mean_db == pytest.approx(0.041)
    assert result.best.work == pytest.approx(0.6)


def test_the_worst_crop_binds_too() -> None:
    assert found(Bounds(0.05, 0.07)).best.floats == {"add", "head", "b"}


def test_what_the_bounds_do_not_need_goes_back_to_int8() -> None:
    """`x` mends most for its work, then `y` has to follow, which alone would do."""
    of, works = {"x": 0.02, "y": 0.03, "z": 0.001}, {"x": 1.0, "y": 4.0, "z": 1.0}
    assert harms(of, works).choose(Bounds(0.025, 1.0)) == {"y"}


def test_what_was_foretold_wrongly_is_made_good() -> None:
    """All lose 0.02 dB more than their harms add up to."""
    result = found(Bounds(0.05, 1.0), more=0.02)
    assert result.bounds_met
    assert result.best.loss.mean_db <= 0.05
    assert result.best.floats == {"add", "head", "b"}


def test_a_margin_counts_where_floats_are_chosen() -> None:
    sure = search(
        harms(),
        Bounds(0.05, 1.0),
        lambda f: Loss(loss_of(f).mean_db, 0.0, margin_db=0.02),
        lambda f: loss_of(f),
        tries=9,
    )
    assert sure.bounds_met
    assert sure.best.loss.upper_db <= 0.05


def test_crops_that_had_no_say_decide_and_are_what_is_told() -> None:
    """They lose 0.015 dB more than the crops searched on."""
    result = search(harms(), Bounds(0.05, 1.0), loss_of, lambda f: loss_of(f, 0.015), tries=9)
    assert result.bounds_met
    assert result.best.confirmed is not None
    assert result.best.confirmed.mean_db <= 0.05
    assert result.best.confirmed.mean_db == pytest.approx(result.best.loss.mean_db + 0.015)


def test_no_more_is_tried_than_was_asked_for() -> None:
    """A loss that follows no harm: each try foretells another one wrongly."""
    tried: list[frozenset[str]] = []

    def evaluate(floats: frozenset[str]) -> Loss:
        tried.append(floats)
        return Loss(0.06 if len(tried) % 2 else 0.2, 0.0)

    many = {f"op{number:02}": 0.01 for number in range(64)}
    result = search(
        harms(many, dict.fromkeys(many, 1.0)), Bounds(0.05, 1.0), evaluate, evaluate, tries=3
    )
    assert not result.bounds_met
    assert len(tried) <= 3 + 4 + 1  # the front's, and one that is confirmed


def test_what_was_asked_for_stays_float() -> None:
    assert found(Bounds(0.05, 1.0), frozenset({"a"})).best.floats >= {"a"}


def test_a_bound_that_only_floats_keep_is_kept_by_no_int8() -> None:
    """Everything as a float is FP32 under another name, unless it was asked for."""
    result = found(Bounds(1e-9, 1e-9))
    assert not result.bounds_met
    assert result.best.floats == set(HARMS) - {"a"}
    assert all(one.floats < set(HARMS) for one in result.pareto)
    assert found(Bounds(1e-9, 1e-9), forced=frozenset(HARMS)).bounds_met


def test_the_front_falls_in_loss_as_it_grows_in_work() -> None:
    front = found(Bounds(0.05, 1.0)).pareto
    assert len(front) > 2
    assert [c.work for c in front] == sorted(c.work for c in front)
    losses = [c.loss.mean_db for c in front]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)


def test_an_operation_that_helps_stays_in_int8() -> None:
    """Its rounding happens to bring the image nearer to the truth."""
    lucky = Harms(
        [Operation("lucky", "Add", 0.1), *(Operation(n, "Conv", 1.0) for n in ("conv", "last"))],
        np.ones(2),
        np.array([[-0.01, -0.01], [0.02, 0.02], [0.0, 0.0]]),
        photos=2,
    )
    assert lucky.choose(Bounds(0.05, 1.0)) == set()
    assert lucky.choose(Bounds(1e-6, 1.0)) == {"conv"}


def test_the_last_convolution_stays_in_int8_whatever_it_harms() -> None:
    """Additions alone in INT8 are nothing quantised."""
    two = Harms(
        [Operation("conv", "Conv", 1.0), Operation("add", "Add", 1.0)],
        np.ones(2),
        np.array([[0.5, 0.5], [0.001, 0.001]]),
        photos=2,
    )
    assert "conv" not in two.choose(Bounds(1e-6, 1e-6))


def test_a_convolution_costs_more_than_an_addition_of_its_size() -> None:
    conv = estimate_work(macs=9 * 48 * 48 * 100, values=2 * 48 * 100)
    assert conv > 10 * estimate_work(macs=0, values=3 * 48 * 100)
    assert estimate_work(macs=0, values=0) > 0  # of an unknown shape
    operations = [Operation("conv", "Conv", 3.0), Operation("add", "Add", 1.0)]
    assert float_share(operations, {"add"}) == 0.25


def worth(share: float, of: dict[str, float], works: dict[str, float]) -> list[str]:
    return knapsack_floats(harms(of, works, worst=1.0), Bounds(1, 1), share)


def test_a_budget_is_spent_on_what_brings_most_together() -> None:
    """By harm over work the two small ones come first, and leave no room for the large one."""
    of, works = (
        {"small": 0.3, "smaller": 0.2, "large": 1.0},
        {"small": 1.0, "smaller": 1.0, "large": 4.0},
    )
    whole = sum(works.values()) / 3  # of everything in INT8
    assert worth(4.5 / whole, of, works) == ["large"]
    assert worth(5.01 / whole, of, works) == ["small", "large"]
    assert worth(2.5 / whole, of, works) == ["small", "smaller"]
    assert worth(0.5 / whole, of, works) == []


def test_what_harms_nothing_takes_no_time() -> None:
    assert worth(9.0, {"good": 0.1, "idle": -0.1}, {"good": 1.0, "idle": 1.0}) == ["good"]
    assert worth(9.0, {}, {}) == []
