"""Figures from raw samples: percentiles, means and ratios with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A series of samples is cut into few blocks: calls close in time are alike, the medians of long
# blocks are nearly free of it. Three still give an interval, more than eight narrow it little.
_FEWEST_BLOCKS, _MOST_BLOCKS = 3, 8
_PER_BLOCK = 10  # samples, where there are enough for more than the fewest blocks
_SYMMETRIC = 1e-6  # a skewness under which a distribution is as good as symmetric


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds it with 95 %, or as often as was asked.

    Where nothing can be told of the spread, the ends are NaN; where no end can be, infinite.
    """

    value: float  # the figure
    low: float  # lower end of the interval
    high: float  # upper end of it


@dataclass(frozen=True)
class Percentiles:
    """Of raw samples, in seconds; interpolated, so p99 of under 100 samples is near the maximum.

    The intervals hold each with 95 % confidence, if calls were independent of each other.
    """

    p50_s: Estimate
    p90_s: Estimate
    p99_s: Estimate


def percentiles(samples_s: Sequence[float]) -> Percentiles:
    """p50, p90 and p99 of at least one sample."""
    ordered = np.sort(np.asarray(samples_s, dtype=np.float64))
    return Percentiles(*(_quantile(ordered, share) for share in (0.5, 0.9, 0.99)))


def _quantile(ordered: npt.NDArray[np.float64], share: float) -> Estimate:
    """With the samples that it lies between: how many are below it is binomial."""
    from scipy.stats import binom

    first, last = binom.ppf((0.025, 0.975), len(ordered), share)
    low = ordered[max(0, int(first) - 1)]
    high = ordered[min(int(last), len(ordered) - 1)]
    return Estimate(float(np.quantile(ordered, share)), float(low), float(high))


def ratio_of_medians(slow_s: Sequence[float], fast_s: Sequence[float]) -> Estimate:
    """median(slow) / median(fast), how many times as fast the second is.

    Batch means (Conway 1963), here of medians: Student's t over the log ratios of blocks. The two
    series were interleaved, so block i of one ran beside block i of the other, which keeps what
    moved both out of the interval.
    """
    value = float(np.median(slow_s) / np.median(fast_s))
    count = min(len(slow_s), len(fast_s))
    if count < _FEWEST_BLOCKS:
        return Estimate(value, 0.0, float("inf"))
    blocks = min(max(count // _PER_BLOCK, _FEWEST_BLOCKS), _MOST_BLOCKS)
    logs = _log_medians(slow_s, blocks) - _log_medians(fast_s, blocks)
    reach = float(np.exp(_t(0.95, blocks - 1) * logs.std(ddof=1) / math.sqrt(blocks)))
    return Estimate(value, value / reach, value * reach)


def _log_medians(samples_s: Sequence[float], blocks: int) -> npt.NDArray[np.float64]:
    """Logarithms of the medians of consecutive blocks of about one length."""
    parts = np.array_split(np.asarray(samples_s, dtype=np.float64), blocks)
    return np.log([np.median(part) for part in parts])


def rate_per_second(times_s: Sequence[float]) -> Estimate:
    """How many a second there are of events at `times_s`, at least two, from the first to the last.

    Batch means, as for the ratio: Student's t over the mean gaps of blocks.
    """
    gaps = np.diff(np.asarray(times_s, dtype=np.float64))
    mean, count = max(float(gaps.mean()), 1e-9), len(gaps)
    if count < _FEWEST_BLOCKS:
        return Estimate(1 / mean, 0.0, float("inf"))
    blocks = min(max(count // _PER_BLOCK, _FEWEST_BLOCKS), _MOST_BLOCKS)
    means = np.array([part.mean() for part in np.array_split(gaps, blocks)])
    reach = _t(0.95, blocks - 1) * float(means.std(ddof=1)) / math.sqrt(blocks)
    most = 1 / (mean - reach) if reach < mean else float("inf")
    return Estimate(1 / mean, 1 / (mean + reach), most)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Student's t over trainings; one training tells nothing of the spread."""
    found = np.asarray(values, dtype=np.float64)
    mean, count = float(found.mean()), len(found)
    reach = float("nan")
    if count > 1:
        reach = _t(0.95, count - 1) * float(found.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - reach, mean + reach)


def mean_over_images(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Mean over images whose values may be skewed; `level` is how often the interval holds it.

    Hall's transformation of the t statistic, which takes out its skewness (P. Hall, "On the
    removal of skewness by transformation", J. R. Statist. Soc. B 54, 1992), with Student's
    quantiles. One image tells nothing of the spread.
    """
    return Moments.of(values).mean(len(values), level=level)


@dataclass(frozen=True)
class Moments:
    """What the mean's interval depends on, so that other numbers of such images can be tried."""

    average: float
    deviation: float  # standard deviation; NaN of one image
    skewness: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Moments:
        """Of at least one value."""
        found = np.asarray(values, dtype=np.float64)
        deviation = float(found.std(ddof=1)) if len(found) > 1 else math.nan
        return cls(float(found.mean()), deviation, _skewness(found))

    def mean(self, count: int, *, level: float) -> Estimate:
        """As `mean_over_images` of so many with this average, deviation and skewness."""
        if count < 2:
            return Estimate(self.average, math.nan, math.nan)
        error = self.deviation / math.sqrt(count)
        quantile = _t(level, count - 1)
        upper, lower = (_remove_skew(end, self.skewness, count) for end in (-quantile, quantile))
        return Estimate(self.average, self.average - lower * error, self.average - upper * error)


def _skewness(values: npt.NDArray[np.float64]) -> float:
    """Sample skewness with Fisher's correction for few samples; 0 where all are alike."""
    count, apart = len(values), values - values.mean()
    deviation = float(values.std())
    if count < 3 or deviation == 0:
        return 0.0
    return float(((apart / deviation) ** 3).mean()) * math.sqrt(count * (count - 1)) / (count - 2)


def _remove_skew(quantile: float, skewness: float, count: int) -> float:
    """The quantile of the t statistic of skewed data: the inverse of Hall's cubic."""
    if abs(skewness) < _SYMMETRIC:
        return quantile
    root = math.sqrt(count)
    cube = 1 + skewness * (quantile / root - skewness / (6 * count))
    third = math.copysign(abs(cube) ** (1 / 3), cube)
    return 3 * root / skewness * (third - 1)


def mean_over_seeds_and_images(values_SI: Sequence[Sequence[float]]) -> Estimate:
    """Mean over S seeds and I images where both are drawn: what other ones would have brought.

    Crossed random effects without replication: the mean's variance is that of the seeds' means
    and that of the images' means together, which counts the noise of single cells twice and so
    errs on the safe side. The quantile is their weighted mean of Student's, each of its own
    degrees of freedom (Cochran and Cox, "Experimental Designs", 1957): with two or
    three seeds Satterthwaite's covers less than it says. NaN with one seed or one image.
    """
    values = np.asarray(values_SI, dtype=np.float64)
    seeds, images = values.shape
    mean, reach = float(values.mean()), float("nan")
    if min(seeds, images) > 1:
        of_seeds = float(values.mean(axis=1).var(ddof=1)) / seeds
        of_images = float(values.mean(axis=0).var(ddof=1)) / images
        weighted = of_seeds * _t(0.95, seeds - 1) + of_images * _t(0.95, images - 1)
        both = of_seeds + of_images
        reach = weighted / math.sqrt(both) if both else 0.0
    return Estimate(mean, mean - reach, mean + reach)


def ratio_of_means(tops: Sequence[float], bottoms: Sequence[float]) -> Estimate:
    """mean(tops) / mean(bottoms) of the same items, at least two, by Fieller's theorem (1954).

    Unbounded where the mean of the bottoms may as well be zero.
    """
    above, below = (np.asarray(values, dtype=np.float64) for values in (tops, bottoms))
    top, bottom, count = float(above.mean()), float(below.mean()), len(above)
    spread = np.cov(above, below) * _t(0.95, count - 1) ** 2 / count
    (of_top, shared), (_, of_bottom) = spread.tolist()
    square = bottom**2 - of_bottom
    if square <= 0:
        return Estimate(top / bottom, -float("inf"), float("inf"))
    middle = top * bottom - shared
    reach = math.sqrt(max(0.0, middle**2 - square * (top**2 - of_top)))
    return Estimate(top / bottom, (middle - reach) / square, (middle + reach) / square)


def _t(level: float, freedom: int) -> float:
    """How many standard errors to either side hold `level` of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))
