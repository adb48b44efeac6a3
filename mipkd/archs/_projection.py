"""A student that starts as its teacher's projection: what the families' closed forms share.

Layer by layer, in the order in which they run: the student's own features of some patches are
what a layer sees, the teacher's features in the student's channels are what it should give, and
its weights are a regression from the one to the other. So each layer makes good what those before
it lost. No labels, no steps; deterministic for given patches.

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

_BLOCKS_SHARE = 0.3  # how much the blocks' reading counts beside the tail's, for the basis


def spans(few: int, many: int) -> list[tuple[int, int]]:
    """Which of `many` blocks each of `few` stands for: from, to; all of them, in order.

    A deeper student than teacher gets empty spans, whose blocks have nothing to do.
    """
    bounds = [round(i * many / few) for i in range(few + 1)]
    return list(pairwise(bounds))


def fit(layer: nn.Conv2d, inputs_NKHW: Tensor, targets_NOHW: Tensor) -> None:
    """Give a convolution the weights that take these features to those."""
    size = layer.kernel_size[0]
    assign(layer, *Regression.of(inputs_NKHW, targets_NOHW, size).solve())


def assign(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Set the weights of a convolution or a linear layer."""
    with torch.no_grad():
        cast("Tensor", layer.weight).copy_(weight)
        cast("Tensor", layer.bias).copy_(bias)


def balance(
    net: nn.Module, first: nn.Conv2d, last: nn.Conv2d, gates: Iterable[nn.Module] = ()
) -> None:
    """Scale all features between two convolutions so that those have weights of one size.

    The net's images stay what they are: its features are homogeneous but for `gates`, whose first
    convolution takes the scale back. Adam moves weights of all layers by steps of one size, so
    that a head with weights of 0.0007 before a last convolution with 5 would be lost within a few
    steps (a teacher's own scale may be like that, and a projection has it from there).
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


def add_nothing(layer: nn.Module) -> None:
    """Let a layer that is added to its input give 0."""
    nn.init.zeros_(cast("Tensor", layer.weight))
    nn.init.zeros_(cast("Tensor", layer.bias))


def first_conv(module: nn.Module) -> nn.Conv2d:
    """The first convolution inside a module."""
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def reading_basis(
    covariances_CC: Sequence[Tensor], tail: nn.Conv2d, blocks: Sequence[nn.Conv2d], width: int
) -> Tensor:
    """`width` directions (K, C) of a stream that hold most of what its readers read of it.

    Principal directions in the metric of the reading weights: the covariance of the stream at
    several places, each of unit trace, seen through the square root of the readers' Gram matrix.
    Rows have unit length.
    """
    return metric_directions(covariances_CC, _reads(tail, blocks), width)


def reading_choice(
    covariances_CC: Sequence[Tensor], tail: nn.Conv2d, blocks: Sequence[nn.Conv2d], width: int
) -> Tensor:
    """Like `reading_basis`, but channels of the stream as they are: rows (K, C) of the identity.

    For streams that are gated channel by channel.
    """
    covariance = torch.stack([_unit(c) for c in covariances_CC]).sum(0)
    cross = F.pad(covariance @ _root(_reads(tail, blocks)), (0, 0, 0, 1))
    centred = F.pad(covariance, (0, 1, 0, 1))
    centred[-1, -1] = 1  # the constant's own energy
    kept = Regression(centred, cross, 1).strongest_inputs(width)
    return torch.eye(len(covariance))[kept]


def metric_directions(covariances_CC: Sequence[Tensor], reads_CC: Tensor, width: int) -> Tensor:
    """The leading `width` directions (K, C) of covariances in the metric `reads`, float32."""
    covariance = torch.stack([_unit(c) for c in covariances_CC]).sum(0)
    root = _root(reads_CC)
    _, found = torch.linalg.eigh(root @ covariance @ root)
    directions_KC: Tensor = found[:, -width:].flip(1).T @ root
    directions_KC = directions_KC / directions_KC.norm(dim=1, keepdim=True)
    largest = directions_KC.abs().argmax(1, keepdim=True)  # the sign of an eigenvector is free
    return (directions_KC * directions_KC.gather(1, largest).sign()).float()


def along(directions_KC: Tensor, features_NCHW: Tensor) -> Tensor:
    """Features in these directions, (N, K, H, W)."""
    return torch.einsum("kc,nchw->nkhw", directions_KC, features_NCHW)


def read_through(
    layer: nn.Conv2d, inputs_NKHW: Tensor, teacher_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """A teacher's convolution as one of the student's features: weight (O, K, k, k) and bias.

    The teacher's features are estimated from the student's by a linear map, and the map is folded
    into the convolution.
    """
    map_CK11, offset_C = Regression.of(inputs_NKHW, teacher_NCHW, 1).solve()
    weight = torch.einsum("ockl,ci->oikl", layer.weight, map_CK11[:, :, 0, 0])
    return weight, cast("Tensor", layer.bias) + layer.weight.sum((2, 3)) @ offset_C


def _reads(tail: nn.Conv2d, blocks: Sequence[nn.Conv2d]) -> Tensor:
    """How much the tail, and to some part the blocks, read of each pair of channels, (C, C)."""
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
    """How much a convolution reads of each pair of input channels, (C, C)."""
    weight = weight_OCkk.double()
    return torch.einsum("ockl,odkl->cd", weight, weight)


def _unit(matrix_CC: Tensor) -> Tensor:
    return matrix_CC / matrix_CC.trace().clamp(min=1e-30)
