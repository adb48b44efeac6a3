"""SPAN's closed form: a narrow net that starts as a wider one's projection.

A block multiplies its input channel by channel, so the student's stream is one selection of the
teacher's channels. What the last layers fuse is linear up to the last convolution: there the
student keeps the directions that are read most.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._projection import (
    find_first_conv,
    fit_conv,
    project_onto,
    reading_basis,
    reading_choice,
    set_weights,
    split_spans,
)
from mipkd.archs._regression import Regression, second_moments
from mipkd.core.errors import UsageError

if TYPE_CHECKING:
    from mipkd.archs._span_blocks import Block
    from mipkd.archs.span import SPAN, JoinedSpan


@torch.no_grad()
def project(student: SPAN, teacher: SPAN, lr_NCHW: Tensor) -> None:
    """Fit all layers of a SPAN to a wider one's, on these patches.

    Raises:
        UsageError: the student is deeper: no block gives its input on unchanged.
    """
    few, many = len(student.blocks), len(teacher.blocks)
    if few > many:
        raise UsageError(
            f"distill.init: {few} blocks of span cannot start as {many}",
            hint='give fewer blocks, or --set distill.init="random"',
        )
    wide, narrow = (cast("JoinedSpan", net.to_deployed()) for net in (teacher, student))
    blocks = [cast("Block", block) for block in wide.blocks]
    streams = [wide.lift((lr_NCHW - teacher.mean) * teacher.image_range)]
    for block in blocks:
        streams.append(block(streams[-1]))
    firsts = [cast("nn.Conv2d", block.c1_r) for block in blocks]
    moments = [second_moments(stream) for stream in streams]
    choice_KC = reading_choice(moments, wide.last, firsts, narrow.lift.out_channels)
    kept = choice_KC.argmax(1).tolist()
    bias = cast("Tensor", wide.lift.bias)
    set_weights(narrow.lift, wide.lift.weight[kept], bias[kept])
    mine = [narrow.lift((lr_NCHW - student.mean) * student.image_range)]
    for small, (_, stop) in zip(narrow.blocks, split_spans(few, many), strict=True):
        block = cast("Block", small)
        _fit_block(block, blocks[stop - 1], streams[stop - 1], mine[-1], kept)
        mine.append(block(mine[-1]))
    _fit_ends(narrow, wide, mine, streams)
    student.set_folded(narrow)


def _fit_block(
    small: Block, wide: Block, stream_NCHW: Tensor, mine_NKHW: Tensor, kept: list[int]
) -> None:
    """Fit a block's convolutions to those of the teacher's block, on the student's features."""
    one, two, three = (cast("nn.Conv2d", c) for c in (wide.c1_r, wide.c2_r, wide.c3_r))
    linear = [one(stream_NCHW)]
    linear.append(two(F.silu(linear[0])))
    linear.append(three(F.silu(linear[1])))
    width = cast("nn.Conv2d", small.c1_r).out_channels
    second = Regression.of(F.silu(linear[1]), linear[2][:, kept], 3).strongest_inputs(width)
    first = Regression.of(F.silu(linear[0]), linear[1][:, second], 3).strongest_inputs(width)
    for layer, wanted, chosen in zip(
        (small.c1_r, small.c2_r, small.c3_r), linear, (first, second, kept), strict=True
    ):
        fit_conv(cast("nn.Conv2d", layer), mine_NKHW, wanted[:, chosen])
        mine_NKHW = F.silu(layer(mine_NKHW))


def _fit_ends(
    narrow: JoinedSpan, wide: JoinedSpan, mine: list[Tensor], streams: list[Tensor]
) -> None:
    """Fit the convolution after the blocks, the fusion and the upsampler."""
    deep = wide.last(streams[-1])
    last = cast("Block", wide.blocks[-1])
    fused = wide.fuse(torch.cat([streams[0], deep, streams[1], last.with_first(streams[-2])[1]], 1))
    up, wide_up = find_first_conv(narrow.up), find_first_conv(wide.up)
    basis_KC = reading_basis([second_moments(fused)], wide_up, [wide_up], narrow.fuse.out_channels)
    shares = wide.fuse.weight.chunk(4, 1)
    own = F.conv2d(deep, shares[1])  # what the convolution adds to the fusion
    fit_conv(narrow.last, mine[-1], project_onto(basis_KC, own))
    first = cast("Block", narrow.blocks[-1]).with_first(mine[-2])[1]
    read = torch.cat([mine[0], narrow.last(mine[-1]), mine[1], first], 1)
    fit_conv(narrow.fuse, read, project_onto(basis_KC, fused))
    fit_conv(up, narrow.fuse(read), wide_up(fused))
