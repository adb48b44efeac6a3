"""CrossKD: the student's features through the rest of the teacher, against the teacher's image.

Paper: Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024.
It hands over at one position between nets of one width; here it is the mean over all positions,
through a learned 1x1 convolution if the widths differ. For one position: `distill.positions=1`
hands over at the end of the body, or name a pair of blocks.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.losses._block_mixer import run_rest
from mipkd.losses._features import feature_pairs
from mipkd.losses.base import Loss, Pass, Positions, l1


class CrossKD(Loss):
    """L1(teacher's blocks after position k (F_S), teacher), the mean over the positions."""

    needs_features: ClassVar[bool] = True

    def helper(
        self, student: SRNet, teacher: SRNet | None, positions: Positions
    ) -> nn.ModuleList | None:
        assert teacher is not None
        if student.width == teacher.width:
            return None
        return nn.ModuleList(nn.Conv2d(student.width, teacher.width, 1) for _ in positions.student)

    def restrict_to(self, teacher: SRNet) -> Loss | None:
        return self if teacher.in_parts else None

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        assert seen.teacher_image is not None
        apart = []
        for k, (mine_NCHW, _) in enumerate(feature_pairs(seen, "crosskd")):
            widened = mine_NCHW if helper is None else cast("nn.ModuleList", helper)[k](mine_NCHW)
            apart.append(l1(run_rest(seen, k, widened, "teacher"), seen.teacher_image))
        return {"cross": self.weight * torch.stack(apart).mean()}


LOSS = CrossKD
