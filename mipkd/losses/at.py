"""Attention transfer (AT): the student's spatial attention maps against the teacher's.

Paper: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017. It takes the L2
norm of the maps' difference at a weight that grows with 1/size; here it is the mean absolute
difference at weight 1, as in the comparisons of the MiPKD group. Maps have no channels, so the
nets may differ in width.

Shapes: N batch, C channels, H W low-res size, P = H * W places.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mipkd.losses._features import feature_pairs
from mipkd.losses.base import Loss, Pass, l1


class AttentionTransfer(Loss):
    """L1 between the nets' attention maps, summed over the positions."""

    needs_features: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ("pixel", "logits")

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        apart = [l1(attention(s), attention(t)) for s, t in feature_pairs(seen, "at")]
        return {"attention": self.weight * torch.stack(apart).sum()}


def attention(features_NCHW: Tensor) -> Tensor:
    """Attention maps (N, P): each place's energy over all channels, of length 1 per image."""
    energy_NP = features_NCHW.float().square().sum(1).flatten(1)
    length_N1: Tensor = torch.linalg.vector_norm(energy_NP, dim=1, keepdim=True)
    return energy_NP / (length_N1 + 1e-6)


LOSS = AttentionTransfer
