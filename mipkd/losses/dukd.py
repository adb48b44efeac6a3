"""DUKD: both nets also upscale crops of the ground truth and a smaller LR; combines with any loss.

Paper: Zhang et al., "Data Upcycling Knowledge Distillation for Image Super-Resolution",
arXiv 2309.14162, 2023. The student sees each such image inverted, flipped or transposed, and its
output, with the changes undone, must equal the teacher's for the unchanged image (label
consistency). The images are new at each step, so a cache of the teacher does not hold them. The
chance of each change is that of the authors' code; they draw per image and change crops alone,
here one draw a step serves the whole batch and both kinds of images. Costs two more forwards of
each net.

Shapes: N batch, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mipkd.losses.base import Loss, Pass, l1

# Each is its own inverse.
CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda image: 1 - image,
    lambda image: image.flip(-2),
    lambda image: image.flip(-1),
    lambda image: image.transpose(-2, -1),
)


class DUKD(Loss):
    """L1(student, teacher) on zoomed-in ground truth, where there is one, and on zoomed-out LR."""

    truth_terms: ClassVar[tuple[str, ...]] = ("zoom_in",)
    beside: ClassVar[tuple[str, ...]] = ("pixel", "logits")

    chance: float = Field(0.3, ge=0, le=1)  # of each change

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        images = {} if seen.truth_NCHW is None else {"zoom_in": zoom_in(seen)}
        images["zoom_out"] = zoom_out(seen)
        return {name: self.weight * self._distance(seen, image) for name, image in images.items()}

    def _distance(self, seen: Pass, image_NCHW: Tensor) -> Tensor:
        assert seen.teacher is not None
        with torch.no_grad():
            label = seen.teacher(image_NCHW)
        changes = [change for change in CHANGES if seen.coins.random() < self.chance]
        return l1(undo_changes(seen.student(apply_changes(image_NCHW, changes)), changes), label)


def zoom_in(seen: Pass) -> Tensor:
    """A crop of the ground truth of the LR's size."""
    height, width = seen.lr_NCHW.shape[-2:]
    top = seen.coins.randint(0, seen.hr_NCHW.shape[-2] - height)
    left = seen.coins.randint(0, seen.hr_NCHW.shape[-1] - width)
    return seen.hr_NCHW[..., top : top + height, left : left + width]


def zoom_out(seen: Pass) -> Tensor:
    """The LR image, S times smaller by the same bicubic kernel."""
    height, width = (size // seen.student.scale for size in seen.lr_NCHW.shape[-2:])
    smaller = F.interpolate(seen.lr_NCHW, (height, width), mode="bicubic", antialias=True)
    return smaller.clamp(0, 1)


def apply_changes(image: Tensor, changes: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """The image after all changes, in order."""
    for change in changes:
        image = change(image)
    return image


def undo_changes(image: Tensor, changes: list[Callable[[Tensor], Tensor]]) -> Tensor:
    """The inverse of `apply_changes`, in reverse order: flips and transposition do not commute."""
    return apply_changes(image, changes[::-1])


LOSS = DUKD
