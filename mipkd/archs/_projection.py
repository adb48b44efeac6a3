"""A student that starts as its teacher's projection: what the families' closed forms share.

Layers are fitted in the order in which they run. A layer's input is the student's own features of
some patches, its target the teacher's features in the student's channels, and its weights are the
ridge regression from one to the other: so each layer corrects the errors of those before it. No
labels and no training steps; deterministic for given patches.

Shapes: N patches, C teacher channels, K student channels, O outputs, H W low-res size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._regression import Regression

_BLOCKS_SHARE = 0.3  # weight of what the blocks read beside what the tail reads, for the basis


def split_spans(few: int, many: int) -> list[tuple[int, int]]:
    """The range of the `many` blocks, from and to, that each of the `few` stands for.

    A student deeper than its teacher gets empty ranges: those blocks pass their input on.
    """
    bounds = [round(i * many / few) for i in range(few + 1)]
    return list(pairwise(bounds))


def fit_conv(layer: nn.Conv2d, inputs_NKHW: Tensor, targets_NOHW: Tensor) -> None:
    """Set a convolution's weights to the regression from these inputs to these targets."""
    size = layer.kernel_size[0]
    set_weights(layer, *Regression.of(inputs_NKHW, targets_NOHW, size).solve())


def set_weights(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Set the weights of a convolution or a linear layer."""
    with torch.no_grad():
        cast("Tensor", layer.weight).copy_(weight)
        cast("Tensor", layer.bias).copy_(bias)


def balance_ends(
    net: nn.Module, first: nn.Conv2d, last: nn.Conv2d, gates: Iterable[nn.Module] = ()
) -> None:
    """Scale all features between two convolutions so that both have weights of the same size.

    The net's images do not change: its features are homogeneous but for `gates`, whose first
    convolution undoes the scale. Adam's steps have one size for all weights, so that a head with
    weights of 0.0007 before a last convolution with weights of 5, which a projection takes over
    from its teacher, would be destroyed within a few steps.
    """
    scale = (_root_mean_square(last.weight) / _root_mean_square(first.weight)).sqrt()
    inside = [module for gate in gates for module in gate.modules()]
    with torch.no_grad():
        first.weight.mul_(scale)
        last.weight.div_(scale)
        for layer in (m for m in net.modules() if isinstance(m, nn.Conv2d) and m is not last):
            if layer not in inside:
                cast("Tensor", layer.bias).mul_(scale)
        for gate in gates:
            next(m for m in gate.modules() if isinstance(m, nn.Conv2d)).weight.div_(scale)


def _root_mean_square(weight: Tensor) -> Tensor:
    return weight.detach().square().mean().sqrt()


def zero_weights(layer: nn.Module) -> None:
    """Make the last layer of a residual branch give 0."""
    nn.init.zeros_(cast("Tensor", layer.weight))
    nn.init.zeros_(cast("Tensor", layer.bias))


def find_first_conv(module: nn.Module) -> nn.Conv2d:
    """The first convolution inside a module."""
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def reading_basis(
    covariances_CC: Sequence[Tensor], tail: nn.Conv2d, blocks: Sequence[nn.Conv2d], width: int
) -> Tensor:
    """`width` directions (K, C) of a stream, rows of unit length, that keep most of what the tail
    and the blocks read of it.

    Principal directions in the metric of the readers' weights: of the covariances at several
    places, each of unit trace, between square roots of the readers' Gram matrix.
    """
    return metric_directions(covariances_CC, _reading_gram(tail, blocks), width)


def reading_choice(
    covariances_CC: Sequence[Tensor], tail: nn.Conv2d, blocks: Sequence[nn.Conv2d], width: int
) -> Tensor:
    """Like `reading_basis`, but a selection of the stream's channels: rows (K, C) of the identity.

    For streams that are gated channel by channel.
    """
    covariance = torch.stack([_unit(c) for c in covariances_CC]).sum(0)
    cross = F.pad(covariance @ _root(_reading_gram(tail, blocks)), (0, 0, 0, 1))
    centred = F.pad(covariance, (0, 1, 0, 1))
    centred[-1, -1] = 1  # of the constant input
    kept = Regression(centred, cross, 1).strongest_inputs(width)
    return torch.eye(len(covariance))[kept]


def metric_directions(covariances_CC: Sequence[Tensor], reads_CC: Tensor, width: int) -> Tensor:
    """The leading `width` directions (K, C) of covariances in the metric `reads`, float32."""
    covariance = torch.stack([_unit(c) for c in covariances_CC]).sum(0)
    root = _root(reads_CC)
    _, found = torch.linalg.eigh(root @ covariance @ root)
    directions_KC: Tensor = found[:, -width:].flip(1).T @ root
    directions_KC = directions_KC / directions_KC.norm(dim=1, keepdim=True)
    largest = directions_KC.abs().argmax(1, keepdim=True)  # an eigenvector's sign is arbitrary
    return (directions_KC * directions_KC.gather(1, largest).sign()).float()


def project_onto(directions_KC: Tensor, features_NCHW: Tensor) -> Tensor:
    """The features' coordinates in these directions, (N, K, H, W)."""
    return torch.einsum("kc,nchw->nkhw", directions_KC, features_NCHW)


def fold_input_map(
    layer: nn.Conv2d, inputs_NKHW: Tensor, teacher_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """A teacher's convolution for the student's features: weight (O, K, k, k) and bias.

    A linear map that estimates the teacher's features from the student's is folded into it.
    """
    map_CK11, offset_C = Regression.of(inputs_NKHW, teacher_NCHW, 1).solve()
    weight = torch.einsum("ockl,ci->oikl", layer.weight, map_CK11[:, :, 0, 0])
    return weight, cast("Tensor", layer.bias) + layer.weight.sum((2, 3)) @ offset_C


def _reading_gram(tail: nn.Conv2d, blocks: Sequence[nn.Conv2d]) -> Tensor:
    """The Gram matrix (C, C) of what the tail and, weighted less, the blocks read."""
    of_blocks = torch.stack([_unit(_gram(block.weight)) for block in blocks]).mean(0)
    return _unit(_gram(tail.weight)) + _BLOCKS_SHARE * of_blocks


def _root(reads_CC: Tensor) -> Tensor:
    """The square root of a metric of trace 1, slightly damped."""
    channels = len(reads_CC)
    metric = _unit(reads_CC) + 1e-3 * torch.eye(channels, dtype=torch.float64) / channels
    values, vectors = torch.linalg.eigh(metric)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root


def _gram(weight_OCkk: Tensor) -> Tensor:
    """The Gram matrix of a convolution's weights over its input channels, (C, C)."""
    weight = weight_OCkk.double()
    return torch.einsum("ockl,odkl->cd", weight, weight)


def _unit(matrix_CC: Tensor) -> Tensor:
    return matrix_CC / matrix_CC.trace().clamp(min=1e-30)
