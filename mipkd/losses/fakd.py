"""FAKD: the affinity matrices of the student's features against those of the teacher's.

Paper: He et al., "FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image
Super-Resolution", ICIP 2020. Affinities have no channels, so the nets may differ in width.

Shapes: N batch, C channels, H W low-res size, P = H * W places.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mipkd.losses._features import feature_pairs
from mipkd.losses.base import Loss, Pass

AT_ONCE = 2**23  # affinities of a net in memory: 32 MiB; a batch of 16 at 48x48 has 2**26.3


class FAKD(Loss):
    """L1 between the nets' affinity matrices, summed over the positions."""

    needs_features: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ("pixel", "logits")

    affinity_weight: float = Field(10.0, ge=0)

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        apart = [affinity_distance(s, t) for s, t in feature_pairs(seen, "fakd")]
        return {"affinity": self.weight * self.affinity_weight * torch.stack(apart).sum()}


def affinity_distance(
    student_NCHW: Tensor, teacher_NCHW: Tensor, *, at_once: int = AT_ONCE
) -> Tensor:
    """Mean absolute difference of the affinities: the cosines between all pairs of places.

    The P x P matrices are computed a few rows at a time, and once more for the gradient.
    """
    mine_NCP, theirs_NCP = _unit_vectors(student_NCHW), _unit_vectors(teacher_NCHW)
    images, _, places = mine_NCP.shape
    rows = max(1, at_once // (images * places))
    sums = [
        checkpoint(
            _sum_row_differences,
            mine_NCP,
            theirs_NCP,
            slice(start, start + rows),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, places, rows)
    ]
    return torch.stack(sums).sum() / (images * places**2)


def _unit_vectors(features_NCHW: Tensor) -> Tensor:
    """Each place's channels as a vector of length 1, (N, C, P)."""
    return F.normalize(features_NCHW.float().flatten(2), dim=1)


def _sum_row_differences(mine_NCP: Tensor, theirs_NCP: Tensor, rows: slice) -> Tensor:
    with torch.autocast(mine_NCP.device.type, enabled=False):
        mine = mine_NCP[:, :, rows].transpose(1, 2) @ mine_NCP
        theirs = theirs_NCP[:, :, rows].transpose(1, 2) @ theirs_NCP
    return (mine - theirs).abs().sum()


LOSS = FAKD
