"""FitNet: the student's features, through a learned regressor, against the teacher's.

Paper: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015. It trains on one hint before
the task; here, as in super-resolution papers, hints and task are learned together and the
positions are summed. The squared difference is in units of the teacher's mean magnitude squared
where it would drown the reconstruction, by the rule of `mixture_of_priors`.
"""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.losses._features import Normalise, Units, feature_pairs
from mipkd.losses.base import Loss, Pass, Positions, l2


class FitNet(Loss):
    """MSE(regressor(F_S), F_T), summed over the positions."""

    needs_features: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ("pixel", "logits")

    normalise: Normalise = "auto"

    def helper(self, student: SRNet, teacher: SRNet | None, positions: Positions) -> "Regressors":
        assert teacher is not None
        return Regressors(len(positions.student), student.width, teacher.width)

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        assert isinstance(helper, Regressors)
        compared = zip(helper.each(), feature_pairs(seen, "fitnet"), strict=True)
        hint_K = torch.stack([l2(regress(s), t) for regress, (s, t) in compared])
        unit_K = helper.unit(seen, hint_K, self.normalise, "fitnet")
        return {"hint": self.weight * (hint_K / unit_K.square()).sum()}


class Regressors(Units):
    """A 1x1 convolution to the teacher's width for each position."""

    regressors: nn.ModuleList

    def __init__(self, count: int, student_width: int, teacher_width: int) -> None:
        super().__init__(count)
        self.regressors = nn.ModuleList(
            nn.Conv2d(student_width, teacher_width, 1) for _ in range(count)
        )

    def each(self) -> list[nn.Conv2d]:
        """The regressors of the positions, in order."""
        return cast("list[nn.Conv2d]", list(self.regressors))


LOSS = FitNet
