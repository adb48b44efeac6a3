"""Pixel range and mean of a net inside its first and its last convolution, for export.

Exact at the border too: there a convolution sees the zeros of its padding, which are the mean's
colour. A fourth input of ones, which the padding ends as well, stands for the mean.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._parts import conv
from mipkd.archs.base import SRNet


class Folded(SRNet):
    """`net` on images in [0, 1]; its body is shared, first and last convolution are new.

    An image has 256 levels, which 8 bits hold as they are; shifted by its mean it has more.
    """

    def __init__(self, net: SRNet, *, image_range: float, mean: Tensor | None) -> None:
        super().__init__()
        self.scale, self.width = net.scale, net.width
        self.multiple, self.least, self.smallest = net.multiple, net.least, net.smallest
        shift = torch.zeros(3) if mean is None else mean.detach().flatten()
        self.shifted = bool(shift.any())
        self.lift = _first(cast("nn.Conv2d", net.lift), image_range, shift, self.shifted)
        self.blocks = net.blocks
        up = list(cast("nn.Sequential", net.up))
        last = getattr(net, "last", None)
        if isinstance(last, nn.Conv2d):
            self.last: nn.Module = _last(last, image_range, shift)
        else:  # straight to the shuffled colours
            self.last = nn.Identity()
            up[0] = _last(cast("nn.Conv2d", up[0]), image_range, shift)
        self.up = nn.Sequential(*up)
        self.train(net.training)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        """Shallow features (N, width, H, W)."""
        if self.shifted:
            lr_NCHW = F.pad(lr_NCHW, (0, 0, 0, 0, 0, 1), value=1.0)
        shallow: Tensor = self.lift(lr_NCHW)
        return shallow

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor) -> Tensor:
        """The image from the body's end plus the long skip."""
        pixels: Tensor = self.last(self.up(features_NCHW + shallow_NCHW))
        return pixels


def _first(of: nn.Conv2d, image_range: float, mean: Tensor, shifted: bool) -> nn.Conv2d:
    weight = of.weight.detach().double() * image_range
    if shifted:
        ones = -torch.einsum("oikl,i->okl", weight, mean.double())
        weight = torch.cat([weight, ones[:, None]], dim=1)
    return _with(weight, cast("Tensor", of.bias).detach())


def _last(of: nn.Conv2d, image_range: float, mean: Tensor) -> nn.Conv2d:
    each = mean.double().repeat_interleave(of.out_channels // len(mean))
    bias = cast("Tensor", of.bias).detach().double() / image_range + each
    return _with(of.weight.detach().double() / image_range, bias)


def _with(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    outputs, inputs, size, _ = weight.shape
    made = conv(inputs, outputs, size)
    state = {"weight": weight.float(), "bias": bias.float()}
    made.load_state_dict(state, assign=True)
    return made
