"""Logits (output) distillation: the student's image against the teacher's."""

from torch import Tensor, nn

from mipkd.losses.base import DISTANCES, Loss, Norm, Pass


class Logits(Loss):
    """L1 or L2 of student and teacher."""

    norm: Norm = "l1"

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        assert seen.teacher_image is not None
        distance = DISTANCES[self.norm]
        return {"logits": self.weight * distance(seen.student_image, seen.teacher_image)}


LOSS = Logits
