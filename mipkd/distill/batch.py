"""The data of one training step: patches, and the teacher's outputs for them if cached.

Shapes: N batch, L latent channels, P patch side in LR pixels, S scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mipkd.losses.base import TeacherPass


@dataclass(frozen=True)
class Batch:
    """Patches as float32 in [0, 1]; without the teacher's outputs if it has to run."""

    lr_NCHW: Tensor  # (N, 3, P, P)
    hr_NCHW: Tensor | None  # (N, 3, S*P, S*P); None where there is no truth
    teacher_image: Tensor | None = None  # (N, 3, S*P, S*P)
    teacher_latents: tuple[Tensor, ...] = ()  # (N, L, P, P) for each position

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; copies to a GPU may still be in progress."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU can copy from while it computes."""
        return self._map(Tensor.pin_memory)

    def clone(self) -> Batch:
        """A copy."""
        return self._map(Tensor.clone)

    def select(self, rows: slice) -> Batch:
        """Some of the patches."""
        return self._map(lambda t: t[rows])

    def split(self, count: int) -> list[Batch]:
        """`count` batches of equal size, in order."""
        size = len(self) // count
        return [self.select(slice(i * size, (i + 1) * size)) for i in range(count)]

    def serves(self, wants: TeacherPass) -> bool:
        """Whether it holds all that is read of the teacher's plain forward."""
        image = self.teacher_image is not None
        latents = image and bool(self.teacher_latents)
        return {"none": True, "image": image, "latents": latents, "features": False}[wants]

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        images = [one for one in (self.hr_NCHW, self.teacher_image) if one is not None]
        return [self.lr_NCHW, *images, *self.teacher_latents]

    def __len__(self) -> int:
        return len(self.lr_NCHW)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.lr_NCHW),
            None if self.hr_NCHW is None else change(self.hr_NCHW),
            None if self.teacher_image is None else change(self.teacher_image),
            tuple(change(latents) for latents in self.teacher_latents),
        )


class Sampler(Protocol):
    """Gives the batch of a step: a pure function of the step, so that a resume is exact."""

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The patches, and what the losses want of the teacher's pass if it is cached."""
