"""Output distillation: the student's image against the teacher's."""

from torch import Tensor, nn

from mipkd.losses.base import Loss, Pass, l1


class Logits(Loss):
    """L1(student, teacher)."""

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        assert seen.teacher_image is not None
        return {"logits": self.weight * l1(seen.student_image, seen.teacher_image)}


LOSS = Logits
