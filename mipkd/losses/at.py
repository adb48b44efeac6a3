"""Attention transfer: where the student's features have their energy, against the teacher's.

Paper: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017. It takes the L2
norm of the maps' difference at a weight that grows with 1/size; here it is the mean absolute
difference at weight 1, as in the comparisons of the MiPKD group. Maps have no channels, so nets
of any width compare.

Shapes: N batch, C channels, H W low-res size, P = H * W places.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mipkd.losses._features import pairs
from mipkd.losses.base import Loss, Pass, l1


class AttentionTransfer(Loss):
    """L1 between the nets' attention maps, summed over the positions."""

    needs_features: ClassVar[bool] = True

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        apart = [l1(attention(s), attention(t)) for s, t in pairs(seen, "at")]
        return {"attention": self.weight * torch.stack(apart).sum()}


def attention(features_NCHW: Tensor) -> Tensor:
    """Each place's energy over all channels, as maps (N, P) of length 1."""
    energy_NP = features_NCHW.float().square().sum(1).flatten(1)
    length_N1: Tensor = torch.linalg.vector_norm(energy_NP, dim=1, keepdim=True)
    return energy_NP / (length_N1 + 1e-6)


LOSS = AttentionTransfer
