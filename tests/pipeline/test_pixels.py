"""The scores of an image: a border of `scale` pixels is no part of any of them."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.bench.pixels import score_image


@pytest.mark.parametrize("scale", [2, 4])
def test_what_differs_in_the_border_alone_scores_as_equal(scale: int, tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 256, (40, 44, 3), dtype=np.uint8)
    image = truth ^ 1
    image[scale:-scale, scale:-scale] = truth[scale:-scale, scale:-scale]
    score = score_image("one", image, truth, scale=scale, out=tmp_path)
    assert score.metrics["psnr_y"] == score.metrics["psnr_rgb"] == 100
    assert score.metrics["ssim_y"] == pytest.approx(1)
    assert score.metrics["tint"] == 0
    assert score.shift_rgb == (0, 0, 0)


def test_a_pixel_inside_the_border_counts(tmp_path: Path) -> None:
    truth = np.zeros((40, 44, 3), np.uint8)
    image = truth.copy()
    image[2, 2] = 9
    assert score_image("one", image, truth, scale=2, out=tmp_path).metrics["psnr_y"] < 100
    assert score_image("one", image, truth, scale=3, out=tmp_path).metrics["psnr_y"] == 100
