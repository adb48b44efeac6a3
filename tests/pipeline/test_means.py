"""A mean over images passes only when it is sure, and says how many images would tell."""

import re

import numpy as np
import pytest

from mipkd.core.evidence import Outcome
from pipeline.judge.means import FEWEST_IMAGES, judge_mean

BOUND = 0.1  # dB
TRIALS = 3000


@pytest.mark.parametrize(("images", "most"), [(FEWEST_IMAGES, 0.025), (14, 0.01), (100, 0.01)])
def test_a_loss_at_its_bound_seldom_passes_though_it_is_skewed(images: int, most: float) -> None:
    rng = np.random.default_rng(images)
    losses = BOUND * rng.lognormal(-0.5, 1.0, (TRIALS, images))  # whose mean is the bound
    passed = sum(judge_mean(one.tolist(), BOUND)[0] is Outcome.PASS for one in losses)
    assert passed / TRIALS <= most


def test_a_loss_over_its_bound_fails_and_one_far_under_it_passes() -> None:
    rng = np.random.default_rng(0)
    assert judge_mean(rng.normal(0.2, 0.02, 14).tolist(), BOUND) == (Outcome.FAIL, "")
    assert judge_mean(rng.normal(0.03, 0.02, 14).tolist(), BOUND) == (Outcome.PASS, "")
    assert judge_mean([0.02] * FEWEST_IMAGES, BOUND) == (Outcome.PASS, "")


def test_too_few_images_are_inconclusive_whatever_they_say() -> None:
    for loss in (0.0, 9.0):
        assert judge_mean([loss], BOUND)[0] is Outcome.INVALID
        outcome, why = judge_mean([loss, loss + 0.01], BOUND)
        assert (outcome, why) == (
            Outcome.INVALID,
            "inconclusive: 2 images, at least 5 are needed",
        )


@pytest.mark.parametrize("mean_db", [0.06, 0.14])
def test_the_number_of_images_that_would_do_does(mean_db: float) -> None:
    few = [mean_db + apart for apart in (-0.12, -0.05, 0.0, 0.06, 0.11)]
    outcome, why = judge_mean(few, BOUND)
    assert outcome is Outcome.INVALID
    found = re.fullmatch(r"inconclusive with 5 images, about (\d+) would do", why)
    assert found
    enough = -(-int(found[1]) // len(few)) * few  # the same images so many times
    assert judge_mean(enough, BOUND)[0] is (Outcome.PASS if mean_db < BOUND else Outcome.FAIL)


def test_what_lies_at_its_bound_and_what_is_not_finite_is_said() -> None:
    at_bound = [BOUND + apart for apart in (-0.02, -0.01, 0.0, 0.01, 0.02)]
    assert "at its bound" in judge_mean(at_bound, BOUND)[1]
    assert judge_mean([0.0] * 9 + [float("nan")], BOUND)[0] is Outcome.INVALID
