"""Losses between images, by hand."""

import math

import pytest
import torch
from torch import nn

from mipkd.archs.base import SRNet
from mipkd.losses import logits, pixel, psnr_drop
from mipkd.losses.base import Pass

TRUTH = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2)
STUDENT = torch.tensor([0.25, 0.75]).view(1, 1, 1, 2)
TEACHER = torch.tensor([0.25, 0.25]).view(1, 1, 1, 2)
SEEN = Pass(TRUTH, TRUTH, SRNet(), STUDENT, teacher_image=TEACHER)


def test_pixel_is_the_mean_distance_to_the_truth() -> None:
    assert pixel.LOSS()(SEEN, None) == {"pixel": torch.tensor(0.25)}


def test_logits_is_the_mean_distance_to_the_teacher() -> None:
    assert logits.LOSS(weight=2)(SEEN, None) == {"logits": torch.tensor(0.5)}


def test_only_pixel_does_without_a_teacher() -> None:
    assert not pixel.LOSS.needs_teacher
    assert logits.LOSS.needs_teacher


def test_psnr_drop_counts_an_error_by_what_the_teacher_errs_on_that_image() -> None:
    """One more level in a sky costs dB, in foliage nothing."""
    truth = torch.zeros(2, 1, 4, 4)
    sky_and_foliage = torch.tensor([4 / 255, 40 / 255]).view(2, 1, 1, 1)
    teacher = truth + sky_and_foliage
    student = nn.Parameter(teacher + 1 / 255)
    terms = psnr_drop.LOSS()(Pass(truth, truth, SRNet(), student, teacher_image=teacher), None)

    floor = 10**-4.5
    own = [(level / 255) ** 2 + floor for level in (4, 40)]
    lost = [
        10 * math.log10((((level + 1) / 255) ** 2 + floor) / one)
        for level, one in zip((4, 40), own, strict=True)
    ]
    apart = [10 * math.log10(1 + 255**-2 / one) for one in own]
    assert terms["psnr_drop"].item() == pytest.approx(sum(lost) / 2, rel=1e-4)
    assert terms["difference"].item() == pytest.approx(sum(apart) / 2, rel=1e-4)

    (gradient,) = torch.autograd.grad(sum(terms.values(), torch.zeros(())), student)
    sky, foliage = gradient.abs().mean((1, 2, 3)).tolist()
    assert sky > 5 * foliage


def test_psnr_drop_is_nothing_where_the_student_is_the_teacher() -> None:
    terms = psnr_drop.LOSS(difference=3)(
        Pass(TRUTH, TRUTH, SRNet(), TEACHER, teacher_image=TEACHER), None
    )
    assert all(float(term) == 0 for term in terms.values())
