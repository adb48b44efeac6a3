"""Intervals hold what they say they hold: simulated coverage, and cases worked by hand."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.bench.stats import (
    Estimate,
    mean_over_images,
    mean_over_seeds,
    mean_over_seeds_and_images,
    percentiles,
    ratio_of_means,
    ratio_of_medians,
)
from pipeline.judge.regression import FEWEST_COMPARED, SURE

Array = npt.NDArray[np.float64]
TRIALS = 1500


def coverage(truth: float, draw: Callable[[], Estimate], trials: int = TRIALS) -> float:
    """The share of intervals that hold the truth."""
    found = [draw() for _ in range(trials)]
    return sum(one.low <= truth <= one.high for one in found) / trials


@pytest.mark.parametrize("images", [14, 100])
@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("image_db", [0.1, 0.02])
def test_a_difference_over_seeds_and_images_is_held(
    seeds: int, images: int, image_db: float
) -> None:
    rng = np.random.default_rng(0)

    def draw() -> Estimate:
        by_seed, by_image = rng.normal(0, 0.02, (seeds, 1)), rng.normal(0, image_db, images)
        noise = rng.normal(0, 0.01, (seeds, images))
        return mean_over_seeds_and_images((0.05 + by_seed + by_image + noise).tolist())

    assert coverage(0.05, draw) >= 0.93


def test_one_seed_or_one_image_tells_no_spread() -> None:
    for values in ([[0.1, 0.2, 0.3]], [[0.2], [0.2]]):
        found = mean_over_seeds_and_images(values)
        assert found.value == pytest.approx(0.2)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    assert math.isnan(mean_over_seeds([1.0]).high)
    assert math.isnan(mean_over_images([1.0]).low)


def test_seeds_alone_or_images_alone_give_students_t() -> None:
    by_seed = mean_over_seeds_and_images([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    by_image = mean_over_seeds_and_images([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    for found in (by_seed, by_image, mean_over_seeds([1.0, 2.0, 3.0])):
        assert found.value == 2.0
        assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
        assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-4)


@pytest.mark.parametrize(("images", "most"), [(FEWEST_COMPARED, 0.0125), (14, 0.01), (100, 0.01)])
@pytest.mark.parametrize("sigma", [0.5, 0.75, 1.0])
def test_a_skewed_loss_of_just_the_margin_passes_one_time_in_a_hundred_at_most(
    images: int, most: float, sigma: float
) -> None:
    trials, margin = 4000, math.exp(sigma**2 / 2)  # the mean of a lognormal loss
    losses = np.random.default_rng(2).lognormal(0, sigma, (trials, images))
    passed = sum(mean_over_images(one, level=SURE).high < margin for one in losses)
    assert passed / trials <= most


@pytest.mark.parametrize(("sigma", "least"), [(0.5, 0.93), (1.0, 0.9)])
def test_the_mean_of_skewed_values_is_held(sigma: float, least: float) -> None:
    rng, truth = np.random.default_rng(0), math.exp(sigma**2 / 2)
    assert coverage(truth, lambda: mean_over_images(rng.lognormal(0, sigma, 14))) >= least


def test_a_mean_over_images_by_hand() -> None:
    even = mean_over_images([1.0, 2.0, 3.0])
    assert even.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4)
    assert mean_over_images([0.5] * 20) == Estimate(0.5, 0.5, 0.5)
    right = mean_over_images([0.0] * 13 + [1.4])
    assert right.high - right.value > 2 * (right.value - right.low)
    left = mean_over_images([0.0] * 13 + [-1.4])
    assert (left.low, left.high) == (pytest.approx(-right.high), pytest.approx(-right.low))


def autocorrelated(rng: np.random.Generator, count: int, rho: float) -> Array:
    """AR(1) of standard deviation 1."""
    steps = math.sqrt(1 - rho**2) * rng.standard_normal(count)
    found = [rng.standard_normal()]
    for step in steps[1:]:
        found.append(rho * found[-1] + step)
    return np.array(found)


@pytest.mark.parametrize("samples", [20, 200])
def test_a_ratio_of_autocorrelated_series_is_held(samples: int) -> None:
    rng = np.random.default_rng(0)

    def draw() -> Estimate:
        slow, fast = (np.exp(0.05 * autocorrelated(rng, samples, 0.5)) for _ in range(2))
        return ratio_of_medians((2 * slow).tolist(), fast.tolist())

    assert coverage(2.0, draw) >= 0.93


def test_too_few_samples_tell_no_ratio() -> None:
    assert ratio_of_medians([2.0, 2.0], [1.0]) == Estimate(2.0, 0.0, math.inf)
    assert ratio_of_medians([2.0] * 5, [1.0] * 7) == Estimate(2.0, 2.0, 2.0)


def test_a_ratio_of_means_is_held() -> None:
    rng = np.random.default_rng(0)

    def draw() -> Estimate:
        gains = rng.lognormal(-2, 0.5, 14)
        return ratio_of_means(0.9 * gains + rng.normal(0, 0.02, 14), gains)

    assert coverage(0.9, draw) >= 0.93


def test_a_ratio_to_what_may_be_zero_is_unbounded() -> None:
    found = ratio_of_means([1.0, 2.0, 3.0], [-1.0, 0.2, 1.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    exact = ratio_of_means([1.0, 1.5, 2.0], [2.0, 3.0, 4.0])
    assert exact.value == pytest.approx(0.5)
    assert (exact.low, exact.high) == (pytest.approx(0.5), pytest.approx(0.5))


T_OF_3 = 4.302653  # Student's t with 2 degrees of freedom, 97.5 %; at 95 % it is 2.92


def test_a_ratio_of_medians_has_the_interval_of_95_percent() -> None:
    slow, fast = [2.0, 2.2, 2.1], [1.0, 1.05, 0.95]  # three blocks of one sample
    logs = np.log(slow) - np.log(fast)
    reach = math.exp(T_OF_3 * float(logs.std(ddof=1)) / math.sqrt(3))
    found = ratio_of_medians(slow, fast)
    assert found.value == pytest.approx(2.1)
    assert (found.low, found.high) == (pytest.approx(2.1 / reach), pytest.approx(2.1 * reach))


def test_a_ratio_of_means_has_the_interval_of_95_percent() -> None:
    tops, bottoms = [0.2, 0.3, 0.1], [0.3, 0.4, 0.2]
    found = ratio_of_means(tops, bottoms)
    for share in (found.low, found.high):  # at its ends the data are just compatible with it
        left = np.array(tops) - share * np.array(bottoms)
        reach = T_OF_3 * float(left.std(ddof=1)) / math.sqrt(3)
        assert abs(float(left.mean())) == pytest.approx(reach, rel=1e-5)


def test_percentiles_have_the_intervals_of_95_percent() -> None:
    found = percentiles([float(n) for n in range(1, 101)])
    assert (found.p50_s.low, found.p50_s.high) == (40, 61)  # at 90 % it would be 42 and 59
    assert (found.p90_s.low, found.p90_s.high) == (84, 96)  # 85 and 95
