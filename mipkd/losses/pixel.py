"""Reconstruction: the student's image against the ground truth."""

from typing import ClassVar

from torch import Tensor, nn

from mipkd.losses.base import DISTANCES, Loss, Norm, Pass


class Pixel(Loss):
    """L1 or L2 of student and ground truth."""

    needs_teacher: ClassVar[bool] = False
    truth_terms: ClassVar[tuple[str, ...]] = ("pixel",)
    beside: ClassVar[tuple[str, ...]] = ()

    norm: Norm = "l1"

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        return {"pixel": self.weight * DISTANCES[self.norm](seen.student_image, seen.hr_NCHW)}


LOSS = Pixel
