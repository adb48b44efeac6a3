"""RLFN's closed forms: a narrow, shallow net that starts as a wide one's projection.

A block adds its input inside, mixes all channels in its 1x1 convolution and gates each. So the
student's channels are a choice of the teacher's, another one after each block.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._projection import assign, fit, spans
from mipkd.archs._regression import Regression
from mipkd.archs.rlfn import RLFN, SLOPE, Block, Gate

_OPEN = 4.0  # the gate's logit in a block that has nothing to do


@torch.no_grad()
def project(student: RLFN, teacher: RLFN, lr_NCHW: Tensor) -> tuple[str, ...]:
    """Fit head, blocks and tail of an RLFN to a larger one's, on these patches.

    Nothing is left over.
    """
    *wide_blocks, wide_end = teacher.blocks
    *blocks, end = student.blocks
    stream = shallow = teacher.head(lr_NCHW)
    for wide in wide_blocks:
        stream = wide(stream)
    deep = wide_end(stream) + shallow
    up, wide_up = _first_conv(student.up), _first_conv(teacher.up)
    # What the last convolution gives is added to the head's features: one choice for both.
    outer = kept = _needed(deep, wide_up(deep), student.width, 3)
    assign(student.lift, teacher.lift.weight[outer], cast("Tensor", teacher.lift.bias)[outer])
    stream, first = shallow, student.head(lr_NCHW)
    mine = first
    for block, (start, stop) in zip(blocks, spans(len(blocks), len(wide_blocks)), strict=True):
        if start == stop:
            _do_nothing(cast("Block", block))
        else:
            for wide in wide_blocks[start : stop - 1]:
                stream = wide(stream)
            inside = _Inside.of(cast("Block", wide_blocks[stop - 1]), stream)
            _fit_convolutions(cast("Block", block), inside, mine, kept)
            stream = inside.out
            kept = _read_most(stream, [*wide_blocks, wide_end][stop], student.width)
            _fit_end_of_block(cast("Block", block), inside, mine, kept)
        mine = block(mine)
    fit(cast("nn.Conv2d", end), mine, wide_end(stream)[:, outer])
    fit(up, end(mine) + first, wide_up(deep))
    return ()


@dataclass
class _Inside:
    """What runs through one of the teacher's blocks."""

    block: Block
    linear: list[Tensor]  # of the three convolutions
    active: list[Tensor]  # after their leaky ReLUs
    mixed: Tensor  # of the 1x1 convolution
    out: Tensor

    @classmethod
    def of(cls, block: Block, x_NCHW: Tensor) -> _Inside:
        linear, active = [], [x_NCHW]
        for layer in (block.c1_r, block.c2_r, block.c3_r):
            linear.append(layer(active[-1]))
            active.append(F.leaky_relu(linear[-1], SLOPE))
        mixed = block.c5(active[-1] + x_NCHW)
        return cls(block, linear, active[1:], mixed, block.esa(mixed))


def _fit_convolutions(
    block: Block, inside: _Inside, mine_NKHW: Tensor, before: list[int]
) -> None:
    """The three convolutions, the last one in the channels that the stream has `before`."""
    middle = block.c1_r.out_channels
    second = _needed(inside.active[1], inside.linear[2][:, before], middle, 3)
    first = _needed(inside.active[0], inside.linear[1][:, second], middle, 3)
    layers = (block.c1_r, block.c2_r, block.c3_r)
    for layer, linear, kept in zip(layers, inside.linear, (first, second, before), strict=True):
        fit(layer, mine_NKHW, linear[:, kept])
        mine_NKHW = F.leaky_relu(layer(mine_NKHW), SLOPE)


def _fit_end_of_block(
    block: Block, inside: _Inside, mine_NKHW: Tensor, kept: list[int]
) -> None:
    """The 1x1 convolution and the gate, in the channels that are `kept` after the block."""
    added = mine_NKHW
    for layer in (block.c1_r, block.c2_r, block.c3_r):
        added = F.leaky_relu(layer(added), SLOPE)
    fit(block.c5, added + mine_NKHW, inside.mixed[:, kept])
    _fit_gate(block.esa, inside.block.esa, block.c5(added + mine_NKHW), inside.mixed, kept)


def _read_most(stream_NCHW: Tensor, reader: nn.Module, count: int) -> list[int]:
    """The channels that the next block, or the convolution after the last, needs most."""
    if isinstance(reader, nn.Conv2d):
        return _needed(stream_NCHW, reader(stream_NCHW), count, 3)
    block = cast("Block", reader)
    given = (block.c1_r(stream_NCHW), block.c5(stream_NCHW))  # read, and added inside
    return _needed(stream_NCHW, torch.cat([g / g.std() for g in given], 1), count, 3)


def _fit_gate(
    gate: Gate, wide: Gate, mine_NKHW: Tensor, theirs_NCHW: Tensor, kept: list[int]
) -> None:
    """Its first and its last convolution by regression, between them the teacher's: in a narrower
    gate those of the channels that are needed most."""
    own = wide.conv1(theirs_NCHW)
    inner = _needed(own, wide.conv_f(own), gate.conv1.out_channels, 1)
    fit(gate.conv1, mine_NKHW, own[:, inner])
    for layer, source in zip(
        (gate.conv2, gate.conv3, gate.conv_f), (wide.conv2, wide.conv3, wide.conv_f), strict=True
    ):
        assign(layer, source.weight[inner][:, inner], cast("Tensor", source.bias)[inner])
    fit(gate.conv4, gate.look(mine_NKHW), wide.conv4(wide.look(theirs_NCHW))[:, kept])


def _do_nothing(block: Block) -> None:
    """Give what comes in: no convolutions, the gate wide open and made good."""
    for layer in (block.c3_r, block.esa.conv4):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(cast("Tensor", layer.bias))
    nn.init.constant_(cast("Tensor", block.esa.conv4.bias), _OPEN)
    nn.init.dirac_(block.c5.weight).div_(torch.tensor(_OPEN).sigmoid())
    nn.init.zeros_(cast("Tensor", block.c5.bias))


def _needed(features_NCHW: Tensor, given_NOHW: Tensor, count: int, size: int) -> list[int]:
    """The `count` channels without which the given features would be missed most."""
    if count == features_NCHW.shape[1]:
        return list(range(count))
    return Regression.of(features_NCHW, given_NOHW, size).strongest_inputs(count)


def _first_conv(up: nn.Module) -> nn.Conv2d:
    return cast("nn.Conv2d", cast("nn.Sequential", up)[0])
