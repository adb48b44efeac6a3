"""RLFN's closed forms: a small net that starts as a larger one's projection.

A block adds its input inside, mixes all channels in a 1x1 convolution and gates each. So the
student's channels are a selection of the teacher's, a new one after each block.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._projection import (
    balance_ends,
    find_first_conv,
    fit_conv,
    set_weights,
    split_spans,
    zero_weights,
)
from mipkd.archs._regression import Regression

if TYPE_CHECKING:
    from mipkd.archs.rlfn import RLFN, Block, Gate

_SOME = 48  # patches for the selection of channels
_OPEN = 4.0  # the gate's logit in a block that passes its input on


@torch.no_grad()
def project(student: RLFN, teacher: RLFN, lr_NCHW: Tensor) -> None:
    """Fit head, blocks and tail of an RLFN to a larger one's, on these patches."""
    *wide_blocks, wide_end = teacher.blocks
    *blocks, end = student.blocks
    stream = shallow = teacher.head(lr_NCHW)
    for wide in wide_blocks:
        stream = wide(stream)
    deep = wide_end(stream) + shallow
    up, wide_up = find_first_conv(student.up), find_first_conv(teacher.up)
    # The last convolution's outputs are added to the head's features: one selection for both.
    outer = kept = _select_channels(deep, wide_up(deep), student.width, 3)
    set_weights(student.lift, teacher.lift.weight[outer], cast("Tensor", teacher.lift.bias)[outer])
    stream, first = shallow, student.head(lr_NCHW)
    mine = first
    for block, (start, stop) in zip(
        blocks, split_spans(len(blocks), len(wide_blocks)), strict=True
    ):
        if start == stop:
            _pass_input_on(cast("Block", block))
        else:
            span = cast("list[Block]", wide_blocks[start:stop])
            reader = [*wide_blocks, wide_end][stop]
            stream, kept = _fit_block(cast("Block", block), span, reader, stream, mine, kept)
        mine = block(mine)
    fit_conv(cast("nn.Conv2d", end), mine, wide_end(stream)[:, outer])
    fit_conv(up, end(mine) + first, wide_up(deep))
    balance_ends(student, student.lift, up, [cast("Block", block).esa for block in blocks])


def _fit_block(
    block: Block,
    span: Sequence[Block],
    reader: nn.Module,
    stream_NCHW: Tensor,
    mine_NKHW: Tensor,
    before: list[int],
) -> tuple[Tensor, list[int]]:
    """Fit a block to a span of the teacher's; the teacher's stream behind it, and the channels
    that the student keeps there.

    The three convolutions follow the teacher's block of the span that gives the smallest error,
    the 1x1 convolution and the gate its last block.
    """
    streams = [stream_NCHW]
    for wide in span[:-1]:
        streams.append(wide(streams[-1]))
    mixed = span[-1].c5(_residual_sum(span[-1], streams[-1]))
    out = span[-1].esa(mixed)
    kept = _select_read_channels(out, reader, mine_NKHW.shape[1])
    fits: list[tuple[float, int, dict[str, Tensor]]] = []
    for wide, stream in zip(span, streams, strict=True):
        _fit_convolutions(block, wide, stream, mine_NKHW, before)
        added = _residual_sum(block, mine_NKHW)
        fit_conv(block.c5, added, mixed[:, kept])
        missed = float((block.c5(added) - mixed[:, kept]).square().mean())
        fits.append((missed, len(fits), {k: v.clone() for k, v in block.state_dict().items()}))
    block.load_state_dict(min(fits)[2])
    _fit_gate(block.esa, span[-1].esa, block.c5(_residual_sum(block, mine_NKHW)), mixed, kept)
    return out, kept


def _residual_sum(block: Block, x_NCHW: Tensor) -> Tensor:
    """A block's input plus the features of its three convolutions."""
    active = x_NCHW
    for layer in (block.c1_r, block.c2_r, block.c3_r):
        active = F.leaky_relu(layer(active), block.slope)
    return active + x_NCHW


def _fit_convolutions(
    block: Block, wide: Block, stream_NCHW: Tensor, mine_NKHW: Tensor, before: list[int]
) -> None:
    """Fit the three convolutions; `before` are the channels of the block's input."""
    linear, active = [], [stream_NCHW]
    for layer in (wide.c1_r, wide.c2_r, wide.c3_r):
        linear.append(layer(active[-1]))
        active.append(F.leaky_relu(linear[-1], wide.slope))
    middle = block.c1_r.out_channels
    second = _select_channels(active[2], linear[2][:, before], middle, 3)
    first = _select_channels(active[1], linear[1][:, second], middle, 3)
    for layer, wanted, kept in zip(
        (block.c1_r, block.c2_r, block.c3_r), linear, (first, second, before), strict=True
    ):
        fit_conv(layer, mine_NKHW, wanted[:, kept])
        mine_NKHW = F.leaky_relu(layer(mine_NKHW), block.slope)


def _select_read_channels(stream_NCHW: Tensor, reader: nn.Module, count: int) -> list[int]:
    """The channels that the next block, or the convolution after the last one, needs most."""
    if isinstance(reader, nn.Conv2d):
        return _select_channels(stream_NCHW, reader(stream_NCHW), count, 3)
    block = cast("Block", reader)
    given = (block.c1_r(stream_NCHW), block.c5(stream_NCHW))  # read, and added inside
    return _select_channels(stream_NCHW, torch.cat([g / g.std() for g in given], 1), count, 3)


def _fit_gate(
    gate: Gate, wide: Gate, mine_NKHW: Tensor, theirs_NCHW: Tensor, kept: list[int]
) -> None:
    """Fit the gate's first and last convolution by regression and copy the teacher's between
    them; a narrower gate copies those of the channels that are needed most."""
    own = wide.conv1(theirs_NCHW)
    inner = _select_channels(own, wide.conv_f(own), gate.conv1.out_channels, 1)
    fit_conv(gate.conv1, mine_NKHW, own[:, inner])
    for layer, source in zip(
        (gate.conv2, gate.conv3, gate.conv_f), (wide.conv2, wide.conv3, wide.conv_f), strict=True
    ):
        set_weights(layer, source.weight[inner][:, inner], cast("Tensor", source.bias)[inner])
    fit_conv(
        gate.conv4,
        gate.gate_features(mine_NKHW),
        wide.conv4(wide.gate_features(theirs_NCHW))[:, kept],
    )


def _pass_input_on(block: Block) -> None:
    """Make a block the identity: convolutions of 0, the gate open and compensated."""
    for layer in (block.c3_r, block.esa.conv4):
        zero_weights(layer)
    nn.init.constant_(cast("Tensor", block.esa.conv4.bias), _OPEN)
    nn.init.dirac_(block.c5.weight).div_(torch.tensor(_OPEN).sigmoid())
    nn.init.zeros_(cast("Tensor", block.c5.bias))


def _select_channels(features_NCHW: Tensor, given_NOHW: Tensor, count: int, size: int) -> list[int]:
    """The `count` channels of `features` that `given`, computed from them, needs most."""
    if count == features_NCHW.shape[1]:
        return list(range(count))
    some = Regression.of(features_NCHW[:_SOME], given_NOHW[:_SOME], size)
    return some.strongest_inputs(count)
