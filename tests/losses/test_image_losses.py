"""Losses between images, by hand."""

import torch

from mipkd.archs.base import SRNet
from mipkd.losses import logits, pixel
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
