"""SPAN's blocks: the convolutions in branches, and what the last layers read of a block.

Shapes: N batch, C channels, H W low-res size.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._parts import conv

_GAIN = 2  # channels inside a branch, of those outside


class Branched(nn.Module):
    """A 3x3 convolution trained as 1x1, 3x3 and 1x1 behind each other, and a 1x1 beside them
    (Conv3XC).

    Kernels are summed, not features: that costs no more than one convolution. The authors pad
    before the first of them, so the borders are those of the sum.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.sk = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, _GAIN * inputs, 1),
            nn.Conv2d(_GAIN * inputs, _GAIN * outputs, 3),
            nn.Conv2d(_GAIN * outputs, outputs, 1),
        )

    def fold_branches(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that equals the branches."""
        kind = self.sk.weight.device.type
        # Kernels are summed in float32, under autocast too.
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            first, wide, last = (cast("nn.Conv2d", one) for one in self.conv)
            inner = torch.einsum("omkl,mi->oikl", wide.weight, first.weight[..., 0, 0])
            weight = torch.einsum("om,mikl->oikl", last.weight[..., 0, 0], inner)
            passed = wide.weight.sum((2, 3)) @ cast("Tensor", first.bias)
            passed = last.weight[..., 0, 0] @ (passed + cast("Tensor", wide.bias))
            bias = passed + cast("Tensor", last.bias) + cast("Tensor", self.sk.bias)
            return weight + F.pad(self.sk.weight, (1, 1, 1, 1)), bias

    def forward(self, x_NCHW: Tensor) -> Tensor:
        weight, bias = self.fold_branches()
        return F.conv2d(x_NCHW, weight, bias, padding=1)

    @torch.no_grad()
    def set_folded(self, weight: Tensor, bias: Tensor) -> None:
        """Make the branches equal that convolution; of their kernels only the widest is changed,
        as little as does it."""
        first, wide, last = (cast("nn.Conv2d", one) for one in self.conv)
        before, after = (torch.linalg.pinv(one.weight[..., 0, 0].double()) for one in (first, last))
        lacks = (weight - self.fold_branches()[0]).double()
        wide.weight += torch.einsum("mo,oikl,in->mnkl", after, lacks, before).float()
        cast("Tensor", last.bias).add_(bias - self.fold_branches()[1])

    def merge(self) -> nn.Conv2d:
        """The one convolution."""
        weight, bias = (tensor.detach() for tensor in self.fold_branches())
        with torch.device("meta"):
            layer = conv(weight.shape[1], len(weight))
        layer.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        return layer


class Block(nn.Module):
    """Three convolutions, added to the input and multiplied by an odd function of themselves
    (SPAB)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.c1_r: nn.Module = Branched(channels, channels)
        self.c2_r: nn.Module = Branched(channels, channels)
        self.c3_r: nn.Module = Branched(channels, channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.with_first(x_NCHW)[0]

    def with_first(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The block's features, and those of its first convolution, activated."""
        first = F.silu(self.c1_r(x_NCHW))
        last = self.c3_r(F.silu(self.c2_r(first)))
        gated: Tensor = (last + x_NCHW) * (last.sigmoid() - 0.5)
        return gated, first


class Step(nn.Module):
    """A block and the shares of what the last layers read of it: on features and that sum (2C)."""

    def __init__(self, channels: int, reads: tuple[str, ...]) -> None:
        super().__init__()
        self.block = Block(channels)
        self.shares = nn.ModuleDict(
            {name: nn.Conv2d(channels, channels, 1, bias=False) for name in reads}
        )

    def forward(self, stream_NCHW: Tensor) -> Tensor:
        features, total = stream_NCHW.chunk(2, 1)
        features, first = self.block.with_first(features)
        for name, share in self.shares.items():
            total = total + share(features if name == "out" else first)
        return torch.cat([features, total], 1)


def merge_block(block: Block) -> Block:
    """The same with convolutions that have no branches."""
    with torch.device("meta"):
        merged = Block(1)
    for name in ("c1_r", "c2_r", "c3_r"):
        setattr(merged, name, cast("Branched", getattr(block, name)).merge())
    return merged
