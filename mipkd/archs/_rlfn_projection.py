"""RLFN's closed forms: a narrow, shallow net that starts as a wide one's projection.

A block adds its input inside, mixes all channels in its 1x1 convolution and gates each. So the
student's channels are a choice of the teacher's, another one after each block.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._projection import assign, fit, spans
from mipkd.archs._regression import Regression
from mipkd.archs.base import SRNet

_SLOPE = 0.05  # of the leaky ReLUs
_OPEN = 4.0  # the gate's logit in a block that has nothing to do


@torch.no_grad()
def project(student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> tuple[str, ...]:
    """Fit head, blocks and tail of an RLFN to a larger one, on these patches."""
    shallow = stream = teacher.head(lr_NCHW)
    *wide_blocks, wide_end = teacher.blocks
    *blocks, end = student.blocks
    wide_up, up = cast("nn.Sequential", teacher.up)[0], cast("nn.Sequential", student.up)[0]
    for wide in wide_blocks:
        stream = wide(stream)
    deep = wide_end(stream) + shallow
    outer = kept = _needed(deep, wide_up(deep), up.in_channels, 3)
    assign(student.lift, teacher.lift.weight[outer], teacher.lift.bias[outer])
    stream, first = shallow, student.head(lr_NCHW)
    mine = first
    for block, (start, stop) in zip(blocks, spans(len(blocks), len(wide_blocks)), strict=True):
        if start == stop:
            _rest(block)
        else:
            for wide in wide_blocks[start : stop - 1]:
                stream = wide(stream)
            reader = wide_blocks[stop] if stop < len(wide_blocks) else wide_end
            before, kept = kept, None
            stream, kept = _fit_block(block, wide_blocks[stop - 1], mine, stream, before, reader)
        mine = block(mine)
    fit(end, mine, wide_end(stream)[:, outer])
    fit(up, end(mine) + first, wide_up(deep))
    return ()


def _fit_block(block, wide, mine, stream, before, reader):
    x = [stream]
    pre = []
    for name in ("c1_r", "c2_r", "c3_r"):
        pre.append(getattr(wide, name)(x[-1]))
        x.append(F.leaky_relu(pre[-1], _SLOPE))
    r = x[-1] + stream
    y = wide.c5(r)
    out = wide.esa(y)
    middle = block.c1_r.out_channels
    keep2 = _needed(x[2], pre[2][:, before], middle, 3)
    keep1 = _needed(x[1], pre[1][:, keep2], middle, 3)
    z = mine
    for name, p, k in (("c1_r", pre[0], keep1), ("c2_r", pre[1], keep2), ("c3_r", pre[2], before)):
        fit(getattr(block, name), z, p[:, k])
        z = F.leaky_relu(getattr(block, name)(z), _SLOPE)
    z = z + mine
    # next selection
    if isinstance(reader, nn.Conv2d):
        kept = _needed(out, reader(out), block.c5.out_channels, 3)
    else:
        a = reader.c1_r(out)
        b = F.conv2d(out, reader.c5.weight)
        tgt = torch.cat([a / a.std(), b / b.std()], 1)
        kept = _needed(out, tgt, block.c5.out_channels, 3)
    fit(block.c5, z, y[:, kept])
    _fit_gate(block.esa, wide.esa, block.c5(z), y, kept)
    return out, kept


def _fit_gate(gate, wide, mine, y, kept):
    own = wide.conv1(y)
    G = gate.conv1.out_channels
    k0 = _needed(own, wide.conv_f(own), G, 1)
    fit(gate.conv1, mine, own[:, k0])
    for name in ("conv2", "conv3", "conv_f"):
        a, b = getattr(gate, name), getattr(wide, name)
        if a.weight.shape == b.weight.shape:
            assign(a, b.weight, b.bias)
    if gate.conv4.in_channels == wide.conv4.in_channels:
        assign(gate.conv4, wide.conv4.weight[kept], wide.conv4.bias[kept])


def _rest(block):
    pass


def _needed(features_NCHW, given_NOHW, count, size) -> list[int]:
    """The `count` channels without which these targets would be missed most."""
    if count == features_NCHW.shape[1]:
        return list(range(count))
    return Regression.of(features_NCHW, given_NOHW, size).strongest_inputs(count)
