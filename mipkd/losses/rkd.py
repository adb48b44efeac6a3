"""RKD: distances and angles between the images of a batch, in the student's features and the
teacher's.

Paper: Park et al., "Relational Knowledge Distillation", CVPR 2019, with its weights for distance
and angle. Only relations between images are compared, so width and resolution may differ.
They are computed from inner products of the flattened features, without difference vectors.

Shapes: N images of the batch; indices of angles: apex, one end, other end.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mipkd.core.errors import UsageError
from mipkd.losses.base import Loss, Pass


class RKD(Loss):
    """Smooth L1 between the nets' relative distances and angles, summed over the positions."""

    needs_features: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ("pixel", "logits")

    distance_weight: float = Field(25.0, ge=0)
    angle_weight: float = Field(50.0, ge=0)

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        images = seen.lr_NCHW.shape[0]
        if images < 3:
            raise UsageError(
                f"distill.losses: rkd compares the images of a batch, and one of {images} has no "
                "relations to compare",
                hint="--set distill.batch=N, 3 or more",
            )
        distance, angle = [], []
        for features in zip(seen.student_features, seen.teacher_features, strict=True):
            (mine_NN, mine_NNN), (theirs_NN, theirs_NNN) = map(relations, features)
            distance.append(_smooth_l1(mine_NN, theirs_NN))
            angle.append(_smooth_l1(mine_NNN, theirs_NNN))
        return {
            "distance": self.weight * self.distance_weight * torch.stack(distance).sum(),
            "angle": self.weight * self.angle_weight * torch.stack(angle).sum(),
        }


def relations(features_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The distances (N, N) in units of their mean, and the angles' cosines (N, N, N); 0 where an
    image is paired with itself."""
    flat = features_NCHW.float().flatten(1)
    # Both leave the relations as they are and avoid cancellation in the inner products.
    flat = flat - flat.mean(0)
    flat = flat / flat.norm().clamp(min=1e-12)
    with torch.autocast(flat.device.type, enabled=False):
        inner_NN = flat @ flat.T
    square_N = inner_NN.diagonal()
    square_NN = square_N[:, None] + square_N[None] - 2 * inner_NN
    # The clamp bounds the root's gradient at equal images.
    length_NN = square_NN.clamp(min=1e-8).sqrt()
    dot_NNN = inner_NN[None] - inner_NN[:, :, None] - inner_NN[:, None] + square_N[:, None, None]
    cosine_NNN = dot_NNN / (length_NN[:, :, None] * length_NN[:, None])
    pairs_NN, triples_NNN = _distinct_masks(len(flat), flat)
    mean = (length_NN * pairs_NN).sum() / pairs_NN.sum()
    return length_NN / mean * pairs_NN, cosine_NNN * triples_NNN


def _distinct_masks(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the pairs (N, N) and triples (N, N, N) of different images."""
    pairs_NN = 1 - torch.eye(count, device=like.device)
    triples_NNN = pairs_NN[:, :, None] * pairs_NN[:, None] * pairs_NN[None]
    return pairs_NN, triples_NNN


def _smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean over distinct images; the other entries are 0 in both."""
    count, order = a.shape[0], a.ndim
    distinct = count * (count - 1) * (count - 2 if order == 3 else 1)
    return F.smooth_l1_loss(a, b, reduction="sum") / distinct


LOSS = RKD
