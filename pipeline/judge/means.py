"""Whether a mean over images keeps its bound: surely, surely not, or not known yet.

What passes is shipped, so that PASS has to be sure, while FAIL has to be likely: one is asked of an
interval of 99.95 %, the other of one of 95 %. Losses are skewed: a few images bear most of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mipkd.core.evidence import Outcome
from pipeline.bench.stats import Moments, mean_over_images

# A loss of just the bound then passes one time in 100 at most from 10 images on, though the losses
# be as skewed as a lognormal whose logarithm has a standard deviation of 1; with 5 images two times
# in 100. An interval of 99 % would let three times pass.
SURE = 0.9995
LIKELY = 0.95
FEWEST_IMAGES = 5
_MOST_IMAGES = 10_000  # more would do, and nobody has them


def judge_mean(losses: Sequence[float], bound: float, *, sure: float = SURE) -> tuple[Outcome, str]:
    """Whether the mean loss over all images of such a kind is at most `bound`.

    `losses` are of one image each, in any unit; `sure` is how sure PASS has to be. With INVALID
    comes why: too few images, or too near the bound, and about how many would do.
    """
    count = len(losses)
    if not np.isfinite(losses).all():
        return Outcome.INVALID, "not every image has a finite figure"
    if count >= FEWEST_IMAGES:
        if mean_over_images(losses, level=sure).high <= bound:
            return Outcome.PASS, ""
        if mean_over_images(losses, level=LIKELY).low > bound:
            return Outcome.FAIL, ""
    needed = _images_needed(losses, bound, sure)
    would_do = (
        f"about {needed} would do" if needed else "more would hardly tell: it is at its bound"
    )
    if count < FEWEST_IMAGES:
        return Outcome.INVALID, (
            f"inconclusive: {_images(count)}, at least {max(FEWEST_IMAGES, needed or 0)} are needed"
        )
    return Outcome.INVALID, f"inconclusive with {_images(count)}, {would_do}"


def _images_needed(losses: Sequence[float], bound: float, sure: float) -> int | None:
    """How many such images would tell, if these showed the mean, the spread and the skewness."""
    if len(losses) < 2:
        return None
    seen = Moments.of(losses)

    def tells(count: int) -> bool:
        if seen.average <= bound:
            return seen.mean(count, level=sure).high <= bound
        return seen.mean(count, level=LIKELY).low > bound

    low, high = max(FEWEST_IMAGES, len(losses) + 1), _MOST_IMAGES
    if not tells(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if tells(middle) else (middle + 1, high)
    return low


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
