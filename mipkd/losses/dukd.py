"""DUKD: both nets also see crops of the truth and the LR made smaller; combines with any loss.

Paper: Zhang et al., "Data Upcycling Knowledge Distillation for Image Super-Resolution",
arXiv 2309.14162, 2023. The student sees each such image inverted, flipped or transposed, and must
give what the teacher gives for the plain one, changed back. These images are new at each step, so
the teacher runs on them also where its images of the photos are kept. The chance of each change is
that of the authors' code; they draw per image and change crops alone, here one draw a step serves
the whole batch and both kinds of images. Costs two more forwards of either net.

Shapes: N batch, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mipkd.losses.base import Loss, Pass, l1

# Each undoes itself.
CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda image: 1 - image,
    lambda image: image.flip(-2),
    lambda image: image.flip(-1),
    lambda image: image.transpose(-2, -1),
)


class DUKD(Loss):
    """L1(student, teacher) on zoomed-in truth and on zoomed-out LR."""

    chance: float = Field(0.3, ge=0, le=1)  # of each change, so that labels are consistent

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        return {
            "zoom_in": self.weight * self._apart(seen, zoomed_in(seen)),
            "zoom_out": self.weight * self._apart(seen, zoomed_out(seen)),
        }

    def _apart(self, seen: Pass, image_NCHW: Tensor) -> Tensor:
        assert seen.teacher is not None
        with torch.no_grad():
            label = seen.teacher(image_NCHW)
        changes = [change for change in CHANGES if seen.coins.random() < self.chance]
        return l1(restored(seen.student(changed(image_NCHW, changes)), changes), label)


def zoomed_in(seen: Pass) -> Tensor:
    """A crop of the truth of the LR's size: LR images of S times the detail."""
    height, width = seen.lr_NCHW.shape[-2:]
    top = seen.coins.randint(0, seen.hr_NCHW.shape[-2] - height)
    left = seen.coins.randint(0, seen.hr_NCHW.shape[-1] - width)
    return seen.hr_NCHW[..., top : top + height, left : left + width]


def zoomed_out(seen: Pass) -> Tensor:
    """The LR made S times smaller, by the bicubic kernel that made it."""
    height, width = (size // seen.student.scale for size in seen.lr_NCHW.shape[-2:])
    smaller = F.interpolate(seen.lr_NCHW, (height, width), mode="bicubic", antialias=True)
    return smaller.clamp(0, 1)


def changed(image: Tensor, changes: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """The image after all changes, in order."""
    for change in changes:
        image = change(image)
    return image


def restored(image: Tensor, changes: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """The image that `changed` made this one of: a flip and a transposition do not commute."""
    return changed(image, changes[::-1])


LOSS = DUKD
