"""Edge's closed forms: a small chain that starts as a larger one's projection.

Features are clipped one by one, so the student's channels are a selection of the teacher's, a new
one after each block; the first three of the shallow features are the image.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mipkd.archs._projection import fit_conv, set_weights, split_spans
from mipkd.archs._regression import Regression

if TYPE_CHECKING:
    from mipkd.archs.edge import Edge

_IMAGE = 3  # features of the image itself


@torch.no_grad()
def project(student: Edge, teacher: Edge, lr_NCHW: Tensor) -> None:
    """Fit all layers of an edge net to a larger one's, on these patches."""
    wide, narrow = teacher.to_deployed(), student.to_deployed()
    layers = [*(cast("nn.Conv2d", block.conv) for block in wide.blocks), cast("nn.Conv2d", wide.up)]
    stream = wide.head(lr_NCHW)
    kept = _select_channels(stream, layers[0], narrow.width, always=_IMAGE)
    lift = cast("nn.Conv2d", wide.lift)
    set_weights(narrow.lift, lift.weight[kept], cast("Tensor", lift.bias)[kept])
    mine = narrow.head(lr_NCHW)
    places = split_spans(len(narrow.blocks), len(wide.blocks))
    for block, (first, last) in zip(narrow.blocks, places, strict=True):
        layer = cast("nn.Conv2d", block.conv)
        if first == last:  # the identity: features are in the range of the clip
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(cast("Tensor", layer.bias))
            continue
        for index in range(first, last):
            unclipped = layers[index](stream)
            stream = unclipped.clamp(0, 1)
        kept = _select_channels(stream, layers[last], narrow.width)
        fit_conv(layer, mine, unclipped[:, kept])
        mine = block(mine)
    fit_conv(cast("nn.Conv2d", narrow.up), mine, layers[-1](stream))
    student.set_folded(narrow)


def _select_channels(
    stream_NCHW: Tensor, reader: nn.Conv2d, count: int, always: int = 0
) -> list[int]:
    """The `count` channels that the next layer needs most."""
    reading = Regression.of(stream_NCHW, reader(stream_NCHW), 3)
    return reading.strongest_inputs(count, always=always)
