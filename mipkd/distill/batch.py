"""What one training step is given: patches, and what the teacher made of them where that is kept.

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
    """Patches as float32 in [0, 1]; the teacher's part is empty where it has to run."""

    lr_NCHW: Tensor  # (N, 3, P, P)
    hr_NCHW: Tensor  # (N, 3, S*P, S*P)
    teacher_image: Tensor | None = None  # as hr_NCHW
    teacher_latents: tuple[Tensor, ...] = ()  # (N, L, P, P) for each position

    def to(self, device: torch.device) -> Batch:
        """The same on a device; the copies may still be under way."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same in memory that a GPU can copy from while it computes."""
        return self._each(Tensor.pin_memory)

    def copied(self) -> Batch:
        """The same in memory of its own."""
        return self._each(Tensor.clone)

    def rows(self, wanted: slice) -> Batch:
        """Some of its patches."""
        return self._each(lambda t: t[wanted])

    def parts(self, count: int) -> list[Batch]:
        """`count` batches of equal size, in order."""
        size = len(self) // count
        return [self.rows(slice(i * size, (i + 1) * size)) for i in range(count)]

    def tensors(self) -> list[Tensor]:
        """All that it holds, in one order."""
        image = [] if self.teacher_image is None else [self.teacher_image]
        return [self.lr_NCHW, self.hr_NCHW, *image, *self.teacher_latents]

    def __len__(self) -> int:
        return len(self.lr_NCHW)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.lr_NCHW),
            change(self.hr_NCHW),
            None if self.teacher_image is None else change(self.teacher_image),
            tuple(change(latents) for latents in self.teacher_latents),
        )


class Sampler(Protocol):
    """Gives the batch of a step: a pure function of the step, so that a resume is exact."""

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The patches, and of the teacher's pass what the losses want, where it is kept."""
