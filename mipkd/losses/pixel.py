"""Reconstruction: the student's image against the true high-resolution image."""

from typing import ClassVar

from torch import Tensor, nn

from mipkd.losses.base import Loss, Pass, l1


class Pixel(Loss):
    """L1(student, truth)."""

    needs_teacher: ClassVar[bool] = False

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        return {"pixel": self.weight * l1(seen.student_image, seen.hr_NCHW)}


LOSS = Pixel
