"""Closed forms of chains without skips (edge, compact): a small chain that starts as a larger
one's projection.

Features are activated one by one, so the student's channels are a selection of the teacher's, a
new one after each convolution.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from mipkd.archs._projection import fit_conv, set_weights, split_spans
from mipkd.archs._regression import Regression


@dataclass(frozen=True)
class Link:
    """A convolution and its activation, which works on each channel alone."""

    conv: nn.Conv2d
    activation: nn.Module

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        active: Tensor = self.activation(self.conv(x_NCHW))
        return active


@torch.no_grad()
def project_chain(
    student: Sequence[Link],
    teacher: Sequence[Link],
    ups: tuple[nn.Conv2d, nn.Conv2d],
    lr_NCHW: Tensor,
    *,
    always: int = 0,
) -> None:
    """Fit a chain and its last convolution to a larger one's, on these patches.

    Args:
        ups: the last convolutions of student and teacher.
        always: the first so many features after the first link are kept.
    """
    (first, *links), (wide_first, *wide) = student, teacher
    readers = [*(link.conv for link in wide), ups[1]]
    stream = wide_first(lr_NCHW)
    kept = _select_channels(stream, readers[0], first.conv.out_channels, always)
    bias = cast("Tensor", wide_first.conv.bias)
    set_weights(first.conv, wide_first.conv.weight[kept], bias[kept])
    _copy_activation(first, wide_first, kept)
    mine = first(lr_NCHW)
    for link, (start, stop) in zip(links, split_spans(len(links), len(wide)), strict=True):
        if start == stop:
            _pass_input_on(link)
            continue
        for each in wide[start:stop]:
            linear = each.conv(stream)
            stream = each.activation(linear)
        kept = _select_channels(stream, readers[stop], link.conv.out_channels)
        fit_conv(link.conv, mine, linear[:, kept])
        _copy_activation(link, wide[stop - 1], kept)
        mine = link(mine)
    fit_conv(ups[0], mine, ups[1](stream))


def _pass_input_on(link: Link) -> None:
    """Make it the identity of features that are activated already."""
    nn.init.dirac_(link.conv.weight)
    nn.init.zeros_(cast("Tensor", link.conv.bias))
    if isinstance(link.activation, nn.PReLU):
        nn.init.ones_(link.activation.weight)


def _copy_activation(link: Link, wide: Link, kept: list[int]) -> None:
    if isinstance(link.activation, nn.PReLU):
        link.activation.weight.copy_(cast("nn.PReLU", wide.activation).weight[kept])


def _select_channels(
    stream_NCHW: Tensor, reader: nn.Conv2d, count: int, always: int = 0
) -> list[int]:
    """The `count` channels that the next layer needs most."""
    reading = Regression.of(stream_NCHW, reader(stream_NCHW), 3)
    return reading.strongest_inputs(count, always=always)
