"""RCAN (Zhang et al., 2018): groups of residual blocks with channel attention.

Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from torch import Tensor, nn

from mipkd.archs._parts import (
    DIV2K_MEAN,
    Axes,
    Axis,
    conv,
    count_indices,
    inherit_channels,
    parse_budget,
    read_upsampler,
    rename_keys,
    spread_evenly,
    take_blocks,
)
from mipkd.archs._rcan_projection import project
from mipkd.archs._shift import fold_shift, list_ranges, settle_range
from mipkd.archs.base import Arch, SRNet, StateDict
from mipkd.archs.edsr import ShiftedNet, axes_of, original_names


@dataclass(frozen=True)
class Hyper:
    """Sizes, and what no tensor tells: image range and mean shift."""

    scale: int
    channels: int
    groups: int
    blocks: int  # in each group
    squeeze: int = 4  # channels inside the attention
    direct: bool = False
    image_range: float = 255.0
    mean: tuple[float, float, float] | None = DIV2K_MEAN


class ChannelAttention(nn.Module):
    """Channel attention: each channel times a gate computed from the means of all channels."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            conv(channels, squeeze, 1), nn.ReLU(), conv(squeeze, channels, 1), nn.Sigmoid()
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        gate: Tensor = self.conv_du(x_NCHW.mean((2, 3), keepdim=True))
        return x_NCHW * gate


class Block(nn.Module):
    """Two convolutions and the attention, added to the input."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels),
            nn.ReLU(),
            conv(channels, channels),
            ChannelAttention(channels, squeeze),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        residual: Tensor = self.body(x_NCHW)
        return x_NCHW + residual


class Group(nn.Module):
    """Blocks and a convolution, added to the input."""

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        blocks = [Block(hyper.channels, hyper.squeeze) for _ in range(hyper.blocks)]
        self.body = nn.Sequential(*blocks, conv(hyper.channels, hyper.channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        residual: Tensor = self.body(x_NCHW)
        return x_NCHW + residual


class RCAN(ShiftedNet):
    """RCAN; the last of `blocks` is the convolution after the groups."""

    def __init__(self, hyper: Hyper) -> None:
        super().__init__(hyper, [Group(hyper) for _ in range(hyper.groups)])


_TAIL = {r"(sub|add)_mean\.": r"\1_mean."}
_ORIGINAL = _TAIL | {
    r"head\.0\.": "lift.",
    r"body\.": "blocks.",
    r"tail\.0\.(\d+)\.": r"up.\1.",
    r"tail\.0\.(weight|bias)": r"up.0.\1",
    r"tail\.1\.": "last.",
}
_RCAB = r"body\.(\d+)\.residual_group\.(\d+)\.rcab"
_BASICSR = {
    r"conv_first\.": "lift.",
    rf"{_RCAB}\.3\.attention\.1\.": r"blocks.\1.body.\2.body.3.conv_du.0.",
    rf"{_RCAB}\.3\.attention\.3\.": r"blocks.\1.body.\2.body.3.conv_du.2.",
    rf"{_RCAB}\.(\d)\.": r"blocks.\1.body.\2.body.\3.",
    r"body\.(\d+)\.conv\.": r"blocks.\1.body.LAST.",
    r"conv_after_body\.": "blocks.END.",
    r"upsample\.(\d+)\.": r"up.\1.",
    r"conv_last\.": "last.",
}


_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """RCAN checkpoints of the authors' and BasicSR's layouts."""

    name, can_project = "rcan", True
    Hyper = Hyper
    signs: ClassVar = {
        "original": (
            "head.0.weight",
            "body.0.body.0.body.0.weight",
            "body.0.body.0.body.3.conv_du.0.weight",
        ),
        "basicsr": (
            "conv_first.weight",
            "body.0.residual_group.0.rcab.0.weight",
            "body.0.conv.weight",
        ),
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        for layout, rules in (("original", _ORIGINAL), ("basicsr", _BASICSR)):
            found = rename_keys(state, rules)
            if found and all(key in state for key in self.signs[layout]):
                last = str(count_indices(state, "body.0.residual_group."))
                end = str(count_indices(found, "blocks."))
                marks = (("LAST", last), ("END", end))
                return layout, fold_shift({_replace_marks(k, marks): v for k, v in found.items()})
        return None

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        channels = int(state["lift.weight"].shape[0])
        scale, direct = read_upsampler(state, channels)
        fields, settled = settle_range(state, layout)
        hyper = Hyper(
            scale=scale,
            channels=channels,
            groups=count_indices(state, "blocks.") - 1,
            blocks=count_indices(state, "blocks.0.body.") - 1,
            squeeze=int(state["blocks.0.body.0.body.3.conv_du.0.weight"].shape[0]),
            direct=direct,
        )
        return replace(hyper, **fields), settled  # type: ignore[arg-type]

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        return list_ranges(hyper)

    def make(self, hyper: _Hyper) -> RCAN:
        return RCAN(hyper)

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=64, groups=10, blocks=6)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c64g10b6`: channels, groups and blocks a group."""
        letters = {"c": "channels", "g": "groups", "b": "blocks"}
        if budget:
            sizes = parse_budget(self.name, budget, letters)
        elif (hyper.channels, hyper.groups, hyper.blocks) == (64, 10, 20):
            sizes = {"blocks": 6}
        else:
            sizes = {"channels": max(8, hyper.channels // 2), "blocks": max(1, hyper.blocks // 2)}
        small = replace(hyper, **sizes)  # type: ignore[arg-type]
        return replace(small, squeeze=max(1, hyper.squeeze * small.channels // hyper.channels))

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        """As in `Arch`, of groups and of the blocks in each."""
        groups, wide_groups = len(student.blocks) - 1, len(teacher.blocks) - 1
        blocks, wide_blocks = (len(net.blocks[0].body) - 1 for net in (student, teacher))  # type: ignore[arg-type]
        sources = [*spread_evenly(groups, wide_groups), wide_groups]
        weights = take_blocks(teacher.state_dict(), sources)
        inner = [*spread_evenly(blocks, wide_blocks), wide_blocks]
        for group in range(groups):
            weights = take_blocks(weights, inner, f"blocks.{group}.body.")
        inherit_channels(student, weights, _axes(student))

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        project(cast("RCAN", student), cast("RCAN", teacher), lr_NCHW)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        return original_names(net)


def _replace_marks(key: str, marks: tuple[tuple[str, str], ...]) -> str:
    for mark, number in marks:
        key = key.replace(mark, number)
    return key


def _axes(net: SRNet) -> Axes:
    outside, stream = axes_of(net), Axis("stream")

    def axes(name: str) -> tuple[Axis | None, ...]:
        match = re.match(r"blocks\.(\d+\.body\.\d+)\.body\.(\d)\.(?:conv_du\.(\d)\.)?", name)
        if match is None:
            return (stream, stream) if name.startswith("blocks.") else outside(name)
        inner, gate = Axis(f"inner {match[1]}"), Axis(f"gate {match[1]}")
        return {
            "0": (inner, stream),
            "2": (stream, inner),
            "30": (gate, stream),
            "32": (stream, gate),
        }[match[2] + (match[3] or "")]

    return axes


ARCH = Family()
