"""PSNR lost against the teacher, in dB: the figure that is reported of INT8, as a loss.

L1 and L2 weight a pixel's error equally in all images. The mean PSNR over images does not: an error
counts more in a clear sky, where the teacher's own error is small, than in foliage.
"""

from typing import ClassVar

from torch import Tensor, nn

from mipkd.core.images import UNSEEN_DB
from mipkd.losses.base import Loss, Pass

_FLOOR = 10 ** (-UNSEEN_DB / 10)  # an invisible mean squared error


class PsnrDrop(Loss):
    """Two terms: the error against the ground truth, and the difference from the teacher's image.

    Both are in dB relative to the teacher's own error, image by image. The ground truth alone
    would overfit the few photos of a short training.
    """

    beside: ClassVar[tuple[str, ...]] = ()

    difference: float = 1.0  # weight of the second term

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        assert seen.teacher_image is not None
        of_teacher = _mse(seen.teacher_image, seen.hr_NCHW) + _FLOOR
        error = (_mse(seen.student_image, seen.hr_NCHW) + _FLOOR) / of_teacher
        apart = 1 + _mse(seen.student_image, seen.teacher_image) / of_teacher
        return {
            "psnr_drop": self.weight * 10 * error.log10().mean(),
            "difference": self.weight * self.difference * 10 * apart.log10().mean(),
        }


def _mse(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Mean squared error of each image, (N,), in float32 under autocast too."""
    return (a_NCHW.float() - b_NCHW.float()).square().mean((1, 2, 3))


LOSS = PsnrDrop
