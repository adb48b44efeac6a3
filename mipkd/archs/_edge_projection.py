"""Edge's closed forms: a narrow, shallow chain that starts as a wide one's projection.

Features are clipped one by one, so the student's channels are a choice of the teacher's, another
one after each block; the first three of the shallow features are the image.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mipkd.archs._projection import assign, fit, spans
from mipkd.archs._regression import Regression

if TYPE_CHECKING:
    from mipkd.archs.edge import Edge

_IMAGE = 3  # features of the image itself


@torch.no_grad()
def project(student: Edge, teacher: Edge, lr_NCHW: Tensor) -> None:
    """Fit all layers of an edge net to a larger one's, on these patches."""
    wide, narrow = teacher.deployed(), student.deployed()
    layers = [*(cast("nn.Conv2d", block.conv) for block in wide.blocks), cast("nn.Conv2d", wide.up)]
    stream = wide.head(lr_NCHW)
    kept = _needed(stream, layers[0], narrow.width, always=_IMAGE)
    lift = cast("nn.Conv2d", wide.lift)
    assign(narrow.lift, lift.weight[kept], cast("Tensor", lift.bias)[kept])
    mine = narrow.head(lr_NCHW)
    places = spans(len(narrow.blocks), len(wide.blocks))
    for block, (first, last) in zip(narrow.blocks, places, strict=True):
        layer = cast("nn.Conv2d", block.conv)
        if first == last:  # clipped features stay what they are
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(cast("Tensor", layer.bias))
            continue
        for index in range(first, last):
            unclipped = layers[index](stream)
            stream = unclipped.clamp(0, 1)
        kept = _needed(stream, layers[last], narrow.width)
        fit(layer, mine, unclipped[:, kept])
        mine = block(mine)
    fit(cast("nn.Conv2d", narrow.up), mine, layers[-1](stream))
    student.become(narrow)


def _needed(stream_NCHW: Tensor, reader: nn.Conv2d, count: int, always: int = 0) -> list[int]:
    """The channels without which the next layer would miss most."""
    reading = Regression.of(stream_NCHW, reader(stream_NCHW), 3)
    return reading.strongest_inputs(count, always=always)
