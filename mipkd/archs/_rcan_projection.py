"""RCAN's closed forms: a small net that starts as a larger one's projection.

Channels are gated one by one, so the student's are a selection of the teacher's: the same for the
whole stream, as groups and blocks add to it.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mipkd.archs._edsr_projection import (
    find_last_conv,
    fit_end,
    fit_head,
    fit_residual,
    fit_tail,
    hidden_candidates,
)
from mipkd.archs._projection import (
    balance_ends,
    find_first_conv,
    fit_conv,
    fold_input_map,
    project_onto,
    reading_choice,
    set_weights,
    split_spans,
    zero_weights,
)
from mipkd.archs._regression import second_moments

if TYPE_CHECKING:
    from mipkd.archs.rcan import RCAN, Block, ChannelAttention, Group

_SHUT = 0.1  # a gate below it is not compensated


@torch.no_grad()
def project(student: RCAN, teacher: RCAN, lr_NCHW: Tensor) -> None:
    """Fit head, groups and tail of an RCAN to a larger one's, on these patches."""
    basis_KC = _select_stream(student, teacher, lr_NCHW)
    shallow_NCHW, shallow_NKHW = fit_head(student, teacher, basis_KC, lr_NCHW)
    theirs, mine = shallow_NCHW, shallow_NKHW
    places = split_spans(len(student.blocks) - 1, len(teacher.blocks) - 1)
    for group, (first, last) in zip(student.blocks, places, strict=False):
        end = cast("Group", group).body[-1]
        if first == last:
            zero_weights(end)
        else:
            wide = cast("Group", teacher.blocks[first])
            added = _fit_blocks(cast("Group", group), wide, basis_KC, theirs, mine)
            for source in teacher.blocks[first:last]:
                theirs = source(theirs)
            fit_conv(cast("nn.Conv2d", end), added, project_onto(basis_KC, theirs) - mine)
        mine = group(mine)
    deep_NCHW, deep_NKHW = fit_end(student, teacher, basis_KC, theirs, mine)
    fit_tail(student, teacher, deep_NKHW + shallow_NKHW, deep_NCHW + shallow_NCHW)
    blocks = [
        block for group in [*student.blocks][:-1] for block in [*cast("Group", group).body][:-1]
    ]
    gates = [cast("ChannelAttention", cast("Block", block).body[3]).conv_du for block in blocks]
    balance_ends(student, student.lift, find_last_conv(student), gates)


def _select_stream(student: RCAN, teacher: RCAN, lr_NCHW: Tensor) -> Tensor:
    """The channels of the stream that the student keeps, as rows (K, C) of the identity."""
    stream = shallow = teacher.head(lr_NCHW)
    kept = [second_moments(shallow)]
    for group in teacher.blocks:
        stream = group(stream)
        kept.append(second_moments(stream))
    kept.append(second_moments(stream + shallow))
    readers = [find_first_conv(group) for group in teacher.blocks]
    return reading_choice(
        kept, find_first_conv(cast("nn.Module", teacher.up)), readers, student.width
    )


def _fit_blocks(
    group: Group, wide: Group, basis_KC: Tensor, theirs_NCHW: Tensor, mine_NKHW: Tensor
) -> Tensor:
    """Fit a group's blocks to those of one of the teacher's; the student's stream behind them."""
    *blocks, _ = cast("list[Block]", [*group.body])
    *wide_blocks, _ = cast("list[Block]", [*wide.body])
    stream, mine = theirs_NCHW, mine_NKHW
    for block, (first, last) in zip(
        blocks, split_spans(len(blocks), len(wide_blocks)), strict=True
    ):
        span = wide_blocks[first:last]
        if span:
            stream = _fit_block(block, span, basis_KC, stream, mine)
        else:
            zero_weights(block.body[2])
        mine = block(mine)
    return mine


def _fit_block(
    block: Block, span: list[Block], basis_KC: Tensor, stream_NCHW: Tensor, mine_NKHW: Tensor
) -> Tensor:
    """Fit a block to a span of the teacher's; the teacher's stream behind it.

    The target of the gated branch is that of the span's last block, plus what the stream lacks
    besides, divided by the gate.
    """
    candidates = [*hidden_candidates(span, stream_NCHW, mine_NKHW)]
    for wide in span[:-1]:
        stream_NCHW = wide(stream_NCHW)
    wide_gate = cast("ChannelAttention", span[-1].body[3])
    ungated = span[-1].body[:3](stream_NCHW)
    opening = project_onto(basis_KC, wide_gate.conv_du(ungated.mean((2, 3), keepdim=True)))
    stream_NCHW = stream_NCHW + wide_gate(ungated)
    gated = project_onto(basis_KC, ungated)
    lacking = project_onto(basis_KC, stream_NCHW) - mine_NKHW - gated * opening
    wanted = gated + lacking / opening.clamp(min=_SHUT)
    fit_residual(block.body, mine_NKHW, wanted, candidates)
    mine_ungated = block.body[:3](mine_NKHW)
    gate = cast("ChannelAttention", block.body[3])
    _fit_gate(gate, wide_gate, basis_KC, ungated, mine_ungated)
    return stream_NCHW


def _fit_gate(
    gate: ChannelAttention,
    wide: ChannelAttention,
    basis_KC: Tensor,
    ungated_NCHW: Tensor,
    mine_NKHW: Tensor,
) -> None:
    """Set the gate to the teacher's on the student's features.

    The linear map between the features holds for their means, which the gate reads.
    """
    squeeze, spread = (cast("nn.Conv2d", wide.conv_du[at]) for at in (0, 2))
    own_squeeze, own_spread = (cast("nn.Conv2d", gate.conv_du[at]) for at in (0, 2))
    inside = squeeze(ungated_NCHW.mean((2, 3), keepdim=True)).relu()
    strength = inside.square().mean((0, 2, 3)) * spread.weight.square().sum((0, 2, 3))
    kept = strength.topk(own_squeeze.out_channels).indices.sort().values
    weight, bias = fold_input_map(squeeze, mine_NKHW, ungated_NCHW)
    set_weights(own_squeeze, weight[kept], bias[kept])
    rows = basis_KC.argmax(1)
    set_weights(own_spread, spread.weight[rows][:, kept], cast("Tensor", spread.bias)[rows])
