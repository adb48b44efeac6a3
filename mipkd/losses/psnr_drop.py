"""PSNR lost against the teacher, in dB: the figure that is reported of INT8, as a loss.

L1 and L2 weight a pixel's error equally in all images. The mean PSNR over images does not: an error
counts more in a clear sky, where the teacher's own error is small, than in foliage. Where there is
no ground truth the teacher's error is taken to be that of `ASSUMED_TRUTH_DB`.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mipkd.core.images import ASSUMED_TRUTH_DB, UNSEEN_DB
from mipkd.losses.base import Loss, Pass

_FLOOR = 10 ** (-UNSEEN_DB / 10)  # an invisible mean squared error
_ASSUMED = 10 ** (-ASSUMED_TRUTH_DB / 10)


class PsnrDrop(Loss):
    """Two terms: the error against the ground truth, and the difference from the teacher's image.

    Both are in dB relative to the teacher's own error, image by image. The ground truth alone
    would overfit the few photos of a short training.
    """

    truth_terms: ClassVar[tuple[str, ...]] = ("psnr_drop",)
    beside: ClassVar[tuple[str, ...]] = ()

    difference: float = 1.0  # weight of the second term

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        assert seen.teacher_image is not None
        if seen.truth_NCHW is None:
            return self._difference(seen, seen.teacher_image, torch.tensor(_ASSUMED))
        of_teacher = _mse(seen.teacher_image, seen.truth_NCHW) + _FLOOR
        error = (_mse(seen.student_image, seen.truth_NCHW) + _FLOOR) / of_teacher
        return {
            "psnr_drop": self.weight * 10 * error.log10().mean(),
            **self._difference(seen, seen.teacher_image, of_teacher),
        }

    def _difference(
        self, seen: Pass, teacher_NCHW: Tensor, of_teacher: Tensor
    ) -> dict[str, Tensor]:
        apart = 1 + _mse(seen.student_image, teacher_NCHW) / of_teacher
        return {"difference": self.weight * self.difference * 10 * apart.log10().mean()}


def _mse(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """Mean squared error of each image, (N,), in float32 under autocast too."""
    return (a_NCHW.float() - b_NCHW.float()).square().mean((1, 2, 3))


LOSS = PsnrDrop
