"""Image range and mean folded into a net's first and last convolution, for export.

Exact at the border too. There a convolution sees the zeros of its padding, which stand for the
mean's colour: so the mean is a fourth input channel of ones, which is padded with zeros as well.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._parts import conv
from mipkd.archs.base import SRNet


class FoldedNet(SRNet):
    """`net` on images in [0, 1]; its body is shared, its first and last convolution are new.

    8 bits hold the 256 levels of an image exactly, those of an image less its mean they do not.
    """

    def __init__(self, net: SRNet, *, image_range: float, mean: Tensor | None) -> None:
        super().__init__()
        self.scale, self.width = net.scale, net.width
        self.multiple, self.least, self.smallest = net.multiple, net.least, net.smallest
        shift = torch.zeros(3) if mean is None else mean.detach().flatten()
        self.shifted = bool(shift.any())
        self.lift = fold_first(cast("nn.Conv2d", net.lift), image_range, shift, self.shifted)
        self.blocks = net.blocks
        up = list(cast("nn.Sequential", net.up))
        last = getattr(net, "last", None)
        if isinstance(last, nn.Conv2d):
            self.last: nn.Module = _fold_last(last, image_range, shift)
        else:  # the upsampler is direct: its convolution gives the pixels
            self.last = nn.Identity()
            up[0] = _fold_last(cast("nn.Conv2d", up[0]), image_range, shift)
        self.up = nn.Sequential(*up)
        self.train(net.training)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        if self.shifted:
            lr_NCHW = F.pad(lr_NCHW, (0, 0, 0, 0, 0, 1), value=1.0)
        shallow: Tensor = self.lift(lr_NCHW)
        return shallow

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        pixels: Tensor = self.last(self.up(features_NCHW + shallow_NCHW))
        return pixels


def fold_first(of: nn.Conv2d, image_range: float, mean: Tensor, shifted: bool) -> nn.Conv2d:
    """A first convolution for images in [0, 1]; where the mean is shifted it reads a fourth channel
    of ones."""
    weight = of.weight.detach().double() * image_range
    if shifted:
        ones = -torch.einsum("oikl,i->okl", weight, mean.double())
        weight = torch.cat([weight, ones[:, None]], dim=1)
    return _make_conv(weight, cast("Tensor", of.bias).detach())


def _fold_last(of: nn.Conv2d, image_range: float, mean: Tensor) -> nn.Conv2d:
    each = mean.double().repeat_interleave(of.out_channels // len(mean))
    bias = cast("Tensor", of.bias).detach().double() / image_range + each
    return _make_conv(of.weight.detach().double() / image_range, bias)


def _make_conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    outputs, inputs, size, _ = weight.shape
    layer = conv(inputs, outputs, size)
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()}, assign=True)
    return layer
