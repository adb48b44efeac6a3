"""EDSR's closed forms: a small net that starts as a larger one's projection.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._projection import (
    balance_ends,
    find_first_conv,
    fit_conv,
    fold_input_map,
    project_onto,
    reading_basis,
    set_weights,
    split_spans,
)
from mipkd.archs._regression import Regression, second_moments

if TYPE_CHECKING:
    from mipkd.archs.edsr import EDSR, ResBlock, ShiftedNet


class Residual(Protocol):
    """A residual block whose body begins with convolution, ReLU, convolution."""

    body: nn.Sequential

    def __call__(self, x_NCHW: Tensor) -> Tensor: ...


_CANDIDATES = 4  # hidden channels are selected from so many times as many of the teacher's,
_MOST_CANDIDATES = 128  # but from no more than these
_TAIL_VALUES = 2**26  # of the teacher's features behind a pixel shuffle: 256 MiB
_SOME = 48  # patches for the selection of hidden channels
_FEW = 32  # patches for the strength of all candidates, whose features fill memory


@torch.no_grad()
def project(student: EDSR, teacher: EDSR, lr_NCHW: Tensor) -> None:
    """Fit head, residual blocks and tail of an EDSR to a larger one, on these patches."""
    places = split_spans(len(student.blocks) - 1, len(teacher.blocks) - 1)
    basis_KC = stream_basis(student, teacher, lr_NCHW, {to for _, to in places})
    shallow_NCHW, shallow_NKHW = fit_head(student, teacher, basis_KC, lr_NCHW)
    theirs, mine = shallow_NCHW, shallow_NKHW
    for block, (first, last) in zip(student.blocks, places, strict=False):
        start = min(first, len(teacher.blocks) - 2)  # the last one for an empty range
        span = cast("list[ResBlock]", [*teacher.blocks][start : max(last, start + 1)])
        candidates = [*hidden_candidates(span, theirs, mine)]
        for index in range(first, last):
            theirs = teacher.blocks[index](theirs)
        residual = cast("ResBlock", block)
        wanted = (project_onto(basis_KC, theirs) - mine) / residual.res_scale
        fit_residual(residual.body, mine, wanted, candidates)
        mine = block(mine)
    deep_NCHW, deep_NKHW = fit_end(student, teacher, basis_KC, theirs, mine)
    fit_tail(student, teacher, deep_NKHW + shallow_NKHW, deep_NCHW + shallow_NCHW)
    balance_ends(student, student.lift, find_last_conv(student))


def stream_basis(
    student: ShiftedNet, teacher: ShiftedNet, lr_NCHW: Tensor, after: set[int]
) -> Tensor:
    """The directions (K, C) of the teacher's stream that a student of its width keeps: from the
    shallow features, from what the tail reads and from the stream after the blocks `after`."""
    stream = shallow = teacher.head(lr_NCHW)
    kept = [second_moments(shallow)]
    for number, block in enumerate(teacher.blocks, 1):
        stream = block(stream)
        if number in after:
            kept.append(second_moments(stream))
    kept.append(second_moments(stream + shallow))
    readers = [find_first_conv(block) for block in teacher.blocks]
    return reading_basis(kept, find_first_conv(teacher.up), readers, student.width)


def fit_head(
    student: ShiftedNet, teacher: ShiftedNet, basis_KC: Tensor, lr_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """Set the head to the teacher's in the basis; the shallow features of teacher and student."""
    weight = torch.einsum("kc,cihw->kihw", basis_KC, teacher.lift.weight)
    set_weights(student.lift, weight, basis_KC @ cast("Tensor", teacher.lift.bias))
    return teacher.head(lr_NCHW), student.head(lr_NCHW)


def fit_end(
    student: ShiftedNet,
    teacher: ShiftedNet,
    basis_KC: Tensor,
    theirs_NCHW: Tensor,
    mine_NKHW: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fit the convolution after the body; its features in teacher and student."""
    end = cast("nn.Conv2d", student.blocks[-1])
    deep_NCHW = teacher.blocks[-1](theirs_NCHW)
    fit_conv(end, mine_NKHW, project_onto(basis_KC, deep_NCHW))
    return deep_NCHW, end(mine_NKHW)


def fit_tail(
    student: ShiftedNet, teacher: ShiftedNet, mine_NKHW: Tensor, theirs_NCHW: Tensor
) -> None:
    """Fit the upsampler, step by step, and the last convolution to the teacher's.

    After each step the student keeps the directions that the next convolution reads most.
    """
    mine, theirs = mine_NKHW, theirs_NCHW
    steps = [*_upsampling_steps(teacher.up)]
    readers = [*(layer for layer, _ in steps[1:]), teacher.last]
    for (layer, shuffle), (wide, _), reader in zip(
        _upsampling_steps(student.up), steps, readers, strict=True
    ):
        few = max(1, _TAIL_VALUES // (wide.out_channels * theirs[0, 0].numel()))
        mine, theirs = mine[:few], shuffle(wide(theirs[:few]))
        wanted = theirs
        if isinstance(reader, nn.Conv2d):
            width = layer.out_channels // shuffle.upscale_factor**2
            wanted = project_onto(
                reading_basis([second_moments(theirs)], reader, [reader], width), theirs
            )
        fit_conv(layer, mine, F.pixel_unshuffle(wanted, shuffle.upscale_factor))
        mine = shuffle(layer(mine))
    if isinstance(student.last, nn.Conv2d):
        fit_conv(student.last, mine, cast("nn.Conv2d", teacher.last)(theirs))


def hidden_candidates(
    blocks: Sequence[Residual], stream_NCHW: Tensor, mine_NKHW: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each of the teacher's residual blocks its first convolution on the student's features,
    weight and bias, and the energy (C,) with which the second one reads its channels."""
    for block in blocks:
        before, after = cast("nn.Conv2d", block.body[0]), cast("nn.Conv2d", block.body[2])
        yield *fold_input_map(before, mine_NKHW, stream_NCHW), after.weight.square().sum((0, 2, 3))
        stream_NCHW = block(stream_NCHW)


def fit_residual(
    body: nn.Sequential,
    stream_NKHW: Tensor,
    wanted_NKHW: Tensor,
    candidates: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> None:
    """Select hidden channels from the candidates and fit the second convolution to `wanted`."""
    before, after = cast("nn.Conv2d", body[0]), cast("nn.Conv2d", body[2])
    weight, bias, read_C = (torch.cat(parts) for parts in zip(*candidates, strict=True))
    few = F.conv2d(stream_NKHW[:_FEW], weight, bias, padding=1).relu()
    most = min(_CANDIDATES * before.out_channels, _MOST_CANDIDATES)
    strength_C = few.square().mean((0, 2, 3)) * read_C
    some = (
        strength_C.topk(min(len(strength_C), max(most, before.out_channels))).indices.sort().values
    )
    hidden = F.conv2d(stream_NKHW, weight[some], bias[some], padding=1).relu()
    best = Regression.of(hidden[:_SOME], wanted_NKHW[:_SOME], 3).strongest_inputs(
        before.out_channels
    )
    set_weights(before, weight[some[best]], bias[some[best]])
    fit_conv(after, hidden[:, best], wanted_NKHW)


def find_last_conv(net: ShiftedNet) -> nn.Conv2d:
    """The convolution whose outputs are the pixels."""
    return net.last if isinstance(net.last, nn.Conv2d) else find_first_conv(net.up)


def _upsampling_steps(up: nn.Module) -> list[tuple[nn.Conv2d, nn.PixelShuffle]]:
    """The upsampler's convolutions, each with the pixel shuffle behind it."""
    layers = list(cast("nn.Sequential", up))
    pairs = zip(layers[::2], layers[1::2], strict=True)
    return cast("list[tuple[nn.Conv2d, nn.PixelShuffle]]", list(pairs))
