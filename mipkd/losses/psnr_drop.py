"""PSNR lost against the teacher, in dB: what is reported of INT8, as a loss.

L1 and L2 count a pixel's error alike wherever it is. PSNR's mean over images does not: beside a
teacher's small error in a clear sky it counts far more than in foliage, where nothing shows.
"""

from torch import Tensor, nn

from mipkd.core.images import UNSEEN_DB
from mipkd.losses.base import Loss, Pass

_FLOOR = 10 ** (-UNSEEN_DB / 10)  # a mean squared error that nobody sees


class PsnrDrop(Loss):
    """Two terms: of the error against the truth, and of the difference from the teacher's image.

    Both are relative to the teacher's own error, an image at a time, and add up in dB. The truth
    alone would teach to fit the few photos of a short training.
    """

    difference: float = 1.0  # weight of the second

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
    """Of each image, (N,), in float32 also under autocast."""
    return (a_NCHW.float() - b_NCHW.float()).square().mean((1, 2, 3))


LOSS = PsnrDrop
