"""EDSR's closed forms: a narrow, shallow net that starts as a wide one's projection.

Shapes: N patches, C teacher channels, K student channels, H W low-res size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._projection import (
    along,
    assign,
    balance,
    first_conv,
    fit,
    read_through,
    reading_basis,
    spans,
)
from mipkd.archs._regression import Regression, second_moments

if TYPE_CHECKING:
    from mipkd.archs.edsr import EDSR, ResBlock, ShiftedNet


class Residual(Protocol):
    """A block that adds what its body gives, two convolutions first of all."""

    body: nn.Sequential

    def __call__(self, x_NCHW: Tensor) -> Tensor: ...


_CANDIDATES = 4  # times a block's channels: from so many of the teacher's the best are taken,
_MOST_CANDIDATES = 128  # but not from more
_TAIL_VALUES = 2**26  # of the teacher's features behind a pixel shuffle: 256 MiB of patches
_SOME = 48  # patches tell which of them are needed most
_FEW = 32  # patches tell which channels are strong: all candidates of many would fill memory


@torch.no_grad()
def project(student: EDSR, teacher: EDSR, lr_NCHW: Tensor) -> None:
    """Fit head, residual blocks and tail of an EDSR to a larger one, on these patches."""
    places = spans(len(student.blocks) - 1, len(teacher.blocks) - 1)
    basis_KC = stream_basis(student, teacher, lr_NCHW, {to for _, to in places})
    shallow_NCHW, shallow_NKHW = fit_head(student, teacher, basis_KC, lr_NCHW)
    theirs, mine = shallow_NCHW, shallow_NKHW
    for block, (first, last) in zip(student.blocks, places, strict=False):
        start = min(first, len(teacher.blocks) - 2)  # of the last one where nothing is left
        span = cast("list[ResBlock]", [*teacher.blocks][start : max(last, start + 1)])
        candidates = [*hidden_candidates(span, theirs, mine)]
        for index in range(first, last):
            theirs = teacher.blocks[index](theirs)
        residual = cast("ResBlock", block)
        wanted = (along(basis_KC, theirs) - mine) / residual.res_scale
        fit_residual(residual.body, mine, wanted, candidates)
        mine = block(mine)
    deep_NCHW, deep_NKHW = fit_end(student, teacher, basis_KC, theirs, mine)
    fit_tail(student, teacher, deep_NKHW + shallow_NKHW, deep_NCHW + shallow_NCHW)
    balance(student, student.lift, last_conv(student))


def stream_basis(
    student: ShiftedNet, teacher: ShiftedNet, lr_NCHW: Tensor, after: set[int]
) -> Tensor:
    """The directions (K, C) of the stream that a student of that width keeps: of the shallow
    features, of what the tail reads, and of the stream after so many of the teacher's blocks."""
    stream = shallow = teacher.head(lr_NCHW)
    kept = [second_moments(shallow)]
    for number, block in enumerate(teacher.blocks, 1):
        stream = block(stream)
        if number in after:
            kept.append(second_moments(stream))
    kept.append(second_moments(stream + shallow))
    readers = [first_conv(block) for block in teacher.blocks]
    return reading_basis(kept, first_conv(teacher.up), readers, student.width)


def fit_head(
    student: ShiftedNet, teacher: ShiftedNet, basis_KC: Tensor, lr_NCHW: Tensor
) -> tuple[Tensor, Tensor]:
    """The teacher's head in the basis, exactly; both nets' shallow features."""
    weight = torch.einsum("kc,cihw->kihw", basis_KC, teacher.lift.weight)
    assign(student.lift, weight, basis_KC @ cast("Tensor", teacher.lift.bias))
    return teacher.head(lr_NCHW), student.head(lr_NCHW)


def fit_end(
    student: ShiftedNet,
    teacher: ShiftedNet,
    basis_KC: Tensor,
    theirs_NCHW: Tensor,
    mine_NKHW: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fit the convolution after the body; both nets' features behind it."""
    end = cast("nn.Conv2d", student.blocks[-1])
    deep_NCHW = teacher.blocks[-1](theirs_NCHW)
    fit(end, mine_NKHW, along(basis_KC, deep_NCHW))
    return deep_NCHW, end(mine_NKHW)


def fit_tail(
    student: ShiftedNet, teacher: ShiftedNet, mine_NKHW: Tensor, theirs_NCHW: Tensor
) -> None:
    """Fit the upsampler, step by step, and the last convolution, to the teacher's image.

    Between the steps the student keeps the directions that the next convolution reads most.
    """
    mine, theirs = mine_NKHW, theirs_NCHW
    steps = [*_steps(teacher.up)]
    readers = [*(layer for layer, _ in steps[1:]), teacher.last]
    for (layer, shuffle), (wide, _), reader in zip(_steps(student.up), steps, readers, strict=True):
        few = max(1, _TAIL_VALUES // (wide.out_channels * theirs[0, 0].numel()))
        mine, theirs = mine[:few], shuffle(wide(theirs[:few]))
        wanted = theirs
        if isinstance(reader, nn.Conv2d):
            width = layer.out_channels // shuffle.upscale_factor**2
            wanted = along(reading_basis([second_moments(theirs)], reader, [reader], width), theirs)
        fit(layer, mine, F.pixel_unshuffle(wanted, shuffle.upscale_factor))
        mine = shuffle(layer(mine))
    if isinstance(student.last, nn.Conv2d):
        fit(student.last, mine, cast("nn.Conv2d", teacher.last)(theirs))


def hidden_candidates(
    blocks: Sequence[Residual], stream_NCHW: Tensor, mine_NKHW: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each of the teacher's residual blocks its first convolution, read through the student's
    features, and how much its second one reads of each of its channels: weight, bias, energy (C,).
    """
    for block in blocks:
        before, after = cast("nn.Conv2d", block.body[0]), cast("nn.Conv2d", block.body[2])
        yield *read_through(before, mine_NKHW, stream_NCHW), after.weight.square().sum((0, 2, 3))
        stream_NCHW = block(stream_NCHW)


def fit_residual(
    body: nn.Sequential,
    stream_NKHW: Tensor,
    wanted_NKHW: Tensor,
    candidates: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> None:
    """Take the hidden channels that the way to what is wanted needs most, and fit the second
    convolution to it."""
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
    assign(before, weight[some[best]], bias[some[best]])
    fit(after, hidden[:, best], wanted_NKHW)


def last_conv(net: ShiftedNet) -> nn.Conv2d:
    """The convolution that gives the pixels."""
    return net.last if isinstance(net.last, nn.Conv2d) else first_conv(net.up)


def _steps(up: nn.Module) -> list[tuple[nn.Conv2d, nn.PixelShuffle]]:
    """The upsampler's convolutions, each with the pixel shuffle after it."""
    layers = list(cast("nn.Sequential", up))
    pairs = zip(layers[::2], layers[1::2], strict=True)
    return cast("list[tuple[nn.Conv2d, nn.PixelShuffle]]", list(pairs))
