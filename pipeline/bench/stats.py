"""Figures from raw samples: percentiles, means and ratios with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BLOCKS = 20  # of a series of samples; calls close in time are alike, blocks are nearly free of it
_PER_BLOCK = 100  # samples of a block that enter; bounds the memory, hardly moves a median
_DRAWS = 1000


@dataclass(frozen=True)
class Percentiles:
    """Of raw samples, in seconds; interpolated, so p99 of under 100 samples is near the maximum.

    The ranges hold each with 95 % confidence, if calls were independent of each other.
    """

    p50_s: float
    p90_s: float
    p99_s: float
    p50_range_s: tuple[float, float]
    p90_range_s: tuple[float, float]
    p99_range_s: tuple[float, float]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two medians or means and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def percentiles(samples_s: Sequence[float]) -> Percentiles:
    """p50, p90 and p99 of at least one sample."""
    ordered = np.sort(np.asarray(samples_s, dtype=np.float64))
    shares = (0.5, 0.9, 0.99)
    p50, p90, p99 = (float(v) for v in np.quantile(ordered, shares))
    return Percentiles(p50, p90, p99, *(_range(ordered, share) for share in shares))


def _range(ordered: npt.NDArray[np.float64], share: float) -> tuple[float, float]:
    """Between which samples a quantile lies: how many are below it is binomial."""
    from scipy.stats import binom

    first, last = binom.ppf((0.025, 0.975), len(ordered), share)
    low = ordered[max(0, int(first) - 1)]
    return float(low), float(ordered[min(int(last), len(ordered) - 1)])


def ratio_of_medians(slow_s: Sequence[float], fast_s: Sequence[float], *, seed: int = 0) -> Ratio:
    """median(slow) / median(fast), how many times as fast the second is.

    The two series were interleaved, so block i of one ran beside block i of the other: the
    bootstrap draws blocks in pairs, which keeps what moved both out of the interval.
    """
    count = min(_BLOCKS, len(slow_s), len(fast_s))
    drawn = np.random.default_rng(seed).integers(0, count, (_DRAWS, count))
    tops = np.median(_blocks(slow_s, count)[drawn].reshape(_DRAWS, -1), axis=1)
    bottoms = np.median(_blocks(fast_s, count)[drawn].reshape(_DRAWS, -1), axis=1)
    low, high = np.percentile(tops / bottoms, (2.5, 97.5))
    value = float(np.median(slow_s) / np.median(fast_s))
    # Blocks are cut to one length, so at the edge the interval may miss the plain ratio.
    return Ratio(value, min(float(low), value), max(float(high), value))


def _blocks(samples_s: Sequence[float], count: int) -> npt.NDArray[np.float64]:
    """Consecutive blocks of one length, shape (count, length)."""
    length = len(samples_s) // count
    blocks = np.asarray(samples_s, dtype=np.float64)[: count * length].reshape(count, length)
    return blocks[:, :: -(-length // _PER_BLOCK)]


@dataclass(frozen=True)
class Interval:
    """A mean and an interval around it; NaN where it cannot be told."""

    mean: float
    low: float
    high: float


def mean_of_few(values: Sequence[float]) -> Interval:
    """Student's t over repeats, such as seeds; one repeat tells nothing of the spread."""
    from scipy.stats import t

    found = np.asarray(values, dtype=np.float64)
    mean, count = float(found.mean()), len(found)
    reach = float("nan")
    if count > 1:
        reach = float(t.ppf(0.975, count - 1) * found.std(ddof=1) / np.sqrt(count))
    return Interval(mean, mean - reach, mean + reach)


def mean_of_many(values: Sequence[float], *, seed: int = 0, level: float = 0.95) -> Interval:
    """Bootstrap over items, such as images; `level` is how often it holds the mean."""
    found = np.asarray(values, dtype=np.float64)
    ends = 50 * (1 - level), 50 * (1 + level)
    low, high = np.percentile(found[_drawn(len(found), seed)].mean(axis=1), ends)
    return Interval(float(found.mean()), float(low), float(high))


def ratio_of_means(tops: Sequence[float], bottoms: Sequence[float], *, seed: int = 0) -> Ratio:
    """mean(tops) / mean(bottoms) of the same items: the bootstrap draws them in pairs."""
    above, below = (np.asarray(values, dtype=np.float64) for values in (tops, bottoms))
    drawn = _drawn(len(above), seed)
    rises, runs = above[drawn].mean(axis=1), below[drawn].mean(axis=1)
    low, high = np.percentile(rises[runs != 0] / runs[runs != 0], (2.5, 97.5))
    return Ratio(float(above.mean() / below.mean()), float(low), float(high))


def _drawn(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of `count` items each resample has, shape (draws, count)."""
    return np.random.default_rng(seed).integers(0, count, (10 * _DRAWS, count))
