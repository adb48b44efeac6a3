"""RCAN's closed forms: narrow, few groups and blocks that start as a larger net's projection.

Channels are gated, so the student's are a choice of the teacher's: the same in the whole stream,
whose groups and blocks add to it.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from mipkd.archs._edsr_projection import (
    fit_end,
    fit_head,
    fit_residual,
    fit_tail,
    hidden_candidates,
    last_conv,
)
from mipkd.archs._projection import (
    add_nothing,
    along,
    assign,
    balance,
    first_conv,
    fit,
    read_through,
    reading_choice,
    spans,
)
from mipkd.archs._regression import second_moments

if TYPE_CHECKING:
    from mipkd.archs.rcan import RCAN, Block, ChannelAttention, Group

_SHUT = 0.1  # a gate smaller than that is not made good


@torch.no_grad()
def project(student: RCAN, teacher: RCAN, lr_NCHW: Tensor) -> None:
    """Fit head, groups and tail of an RCAN to a larger one's, on these patches."""
    basis_KC = _choice(student, teacher, lr_NCHW)
    shallow_NCHW, shallow_NKHW = fit_head(student, teacher, basis_KC, lr_NCHW)
    theirs, mine = shallow_NCHW, shallow_NKHW
    places = spans(len(student.blocks) - 1, len(teacher.blocks) - 1)
    for group, (first, last) in zip(student.blocks, places, strict=False):
        end = cast("Group", group).body[-1]
        if first == last:
            add_nothing(end)
        else:
            wide = cast("Group", teacher.blocks[first])
            added = _fit_blocks(cast("Group", group), wide, basis_KC, theirs, mine)
            for source in teacher.blocks[first:last]:
                theirs = source(theirs)
            fit(cast("nn.Conv2d", end), added, along(basis_KC, theirs) - mine)
        mine = group(mine)
    deep_NCHW, deep_NKHW = fit_end(student, teacher, basis_KC, theirs, mine)
    fit_tail(student, teacher, deep_NKHW + shallow_NKHW, deep_NCHW + shallow_NCHW)
    from mipkd.archs.rcan import ChannelAttention

    gates = [m for m in student.modules() if isinstance(m, ChannelAttention)]
    balance(student, student.lift, last_conv(student), [gate.conv_du for gate in gates])


def _choice(student: RCAN, teacher: RCAN, lr_NCHW: Tensor) -> Tensor:
    """The channels of the stream that the student keeps, as rows (K, C) of the identity."""
    stream = shallow = teacher.head(lr_NCHW)
    kept = [second_moments(shallow)]
    for group in teacher.blocks:
        stream = group(stream)
        kept.append(second_moments(stream))
    kept.append(second_moments(stream + shallow))
    readers = [first_conv(group) for group in teacher.blocks]
    return reading_choice(kept, first_conv(cast("nn.Module", teacher.up)), readers, student.width)


def _fit_blocks(
    group: Group, wide: Group, basis_KC: Tensor, theirs_NCHW: Tensor, mine_NKHW: Tensor
) -> Tensor:
    """Fit a group's blocks to those of one of the teacher's; what the student's give."""
    *blocks, _ = cast("list[Block]", [*group.body])
    *wide_blocks, _ = cast("list[Block]", [*wide.body])
    stream, mine = theirs_NCHW, mine_NKHW
    for block, (first, last) in zip(blocks, spans(len(blocks), len(wide_blocks)), strict=True):
        span = wide_blocks[first:last]
        if span:
            stream = _fit_block(block, span, basis_KC, stream, mine)
        else:
            add_nothing(block.body[2])
        mine = block(mine)
    return mine


def _fit_block(
    block: Block, span: list[Block], basis_KC: Tensor, stream_NCHW: Tensor, mine_NKHW: Tensor
) -> Tensor:
    """Fit a block to a span of the teacher's; the teacher's stream behind it.

    Gate and what is gated are those of the span's last block, but for what the stream lacks else:
    that is divided by the gate and added before it.
    """
    candidates = [*hidden_candidates(span, stream_NCHW, mine_NKHW)]
    for wide in span[:-1]:
        stream_NCHW = wide(stream_NCHW)
    wide_gate = cast("ChannelAttention", span[-1].body[3])
    ungated = span[-1].body[:3](stream_NCHW)
    opening = along(basis_KC, wide_gate.conv_du(ungated.mean((2, 3), keepdim=True)))
    stream_NCHW = stream_NCHW + wide_gate(ungated)
    gated = along(basis_KC, ungated)
    lacking = along(basis_KC, stream_NCHW) - mine_NKHW - gated * opening
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
    """The teacher's gate, read through the student's features.

    Means obey the linear map that the features obey.
    """
    squeeze, spread = (cast("nn.Conv2d", wide.conv_du[at]) for at in (0, 2))
    own_squeeze, own_spread = (cast("nn.Conv2d", gate.conv_du[at]) for at in (0, 2))
    inside = squeeze(ungated_NCHW.mean((2, 3), keepdim=True)).relu()
    strength = inside.square().mean((0, 2, 3)) * spread.weight.square().sum((0, 2, 3))
    kept = strength.topk(own_squeeze.out_channels).indices.sort().values
    weight, bias = read_through(squeeze, mine_NKHW, ungated_NCHW)
    assign(own_squeeze, weight[kept], bias[kept])
    rows = basis_KC.argmax(1)
    assign(own_spread, spread.weight[rows][:, kept], cast("Tensor", spread.bias)[rows])
