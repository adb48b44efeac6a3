"""What INT8 costs a test set is foretold from noise on other photos and each image's own error."""

import math

import pytest

from mipkd.core.measurement import ImageScore, Measurement
from pipeline.bench.comparisons import foretell_drop


def scored(*psnrs: float) -> Measurement:
    scores = tuple(ImageScore(f"{n}", {"psnr_y": db}) for n, db in enumerate(psnrs))
    return Measurement("student", "cpu", "fp32", scores=scores)


def test_the_same_noise_costs_a_good_image_more() -> None:
    error = 255**2 / 1000  # of 30 dB
    assert foretell_drop(0.0, scored(30.0)) == 0
    assert foretell_drop(error, scored(30.0)) == pytest.approx(10 * math.log10(2))
    poor, good = foretell_drop(1.0, scored(25.0)), foretell_drop(1.0, scored(35.0))
    assert poor is not None
    assert good is not None
    assert good > 9 * poor
    assert foretell_drop(1.0, scored(25.0, 35.0)) == pytest.approx((poor + good) / 2)


def test_what_nobody_sees_counts_as_45_db() -> None:
    assert foretell_drop(1.0, scored(60.0)) == foretell_drop(1.0, scored(45.0))


def test_without_images_nothing_is_foretold() -> None:
    assert foretell_drop(1.0, None) is None
    assert foretell_drop(1.0, scored()) is None
