"""EDSR (Lim et al., 2017): residual blocks without normalisation, one long skip.

Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mipkd.archs._edsr_projection import project
from mipkd.archs._fold import FoldedNet
from mipkd.archs._parts import (
    DIV2K_MEAN,
    Axes,
    Axis,
    conv,
    count_indices,
    inherit_channels,
    make_upsampler,
    parse_budget,
    read_upsampler,
    rename_keys,
    restore_keys,
    spread_evenly,
    take_blocks,
)
from mipkd.archs._shift import fold_shift, list_ranges, settle_range
from mipkd.archs.base import Arch, SRNet, StateDict


@dataclass(frozen=True)
class Hyper:
    """Sizes, and what no tensor tells: image range, residual scale and mean shift."""

    scale: int
    channels: int
    blocks: int
    direct: bool = False  # one convolution straight to the shuffled RGB
    image_range: float = 255.0
    res_scale: float = 1.0
    mean: tuple[float, float, float] | None = DIV2K_MEAN  # subtracted, in [0, 1]


class ResBlock(nn.Module):
    """x + res_scale * conv(relu(conv(x)))."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))
        self.res_scale = res_scale

    def forward(self, x_NCHW: Tensor) -> Tensor:
        residual: Tensor = self.body(x_NCHW)
        return x_NCHW + (residual if self.res_scale == 1 else residual * self.res_scale)


class ShiftedNet(SRNet):
    """Head and tail of EDSR and RCAN: pixels of `image_range` with the mean subtracted."""

    mean: Tensor

    def __init__(self, hyper: Any, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.scale, self.width = hyper.scale, hyper.channels
        self.image_range = hyper.image_range
        shift = torch.tensor(hyper.mean or (0.0, 0.0, 0.0)).view(1, 3, 1, 1)
        self.register_buffer("mean", shift, persistent=False)
        self.lift = conv(3, hyper.channels)
        self.blocks = nn.ModuleList([*blocks, conv(hyper.channels, hyper.channels)])
        self.up = make_upsampler(hyper.channels, hyper.scale, direct=hyper.direct)
        self.last = nn.Identity() if hyper.direct else conv(hyper.channels, 3)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        shallow: Tensor = self.lift((lr_NCHW - self.mean) * self.image_range)
        return shallow

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        deep = self.up(features_NCHW + shallow_NCHW)
        pixels: Tensor = self.last(deep) / self.image_range + self.mean
        return pixels

    def to_exportable(self) -> SRNet:
        return FoldedNet(self, image_range=self.image_range, mean=self.mean)


class EDSR(ShiftedNet):
    """EDSR; the last of `blocks` is the convolution after the body."""

    def __init__(self, hyper: Hyper) -> None:
        residual: list[nn.Module] = [
            ResBlock(hyper.channels, hyper.res_scale) for _ in range(hyper.blocks)
        ]
        super().__init__(hyper, residual)


_ORIGINAL = {
    r"(sub|add)_mean\.": r"\1_mean.",
    r"head\.0\.": "lift.",
    r"body\.(\d+)\.body\.(\d+)\.": r"blocks.\1.body.\2.",
    r"body\.(\d+)\.(weight|bias)": r"blocks.\1.\2",
    r"tail\.0\.(\d+)\.": r"up.\1.",
    r"tail\.0\.(weight|bias)": r"up.0.\1",
    r"tail\.1\.": "last.",
}
_BASICSR = {
    r"conv_first\.": "lift.",
    r"body\.(\d+)\.conv1\.": r"blocks.\1.body.0.",
    r"body\.(\d+)\.conv2\.": r"blocks.\1.body.2.",
    r"conv_after_body\.": "blocks.END.",
    r"upsample\.(\d+)\.": r"up.\1.",
    r"conv_last\.": "last.",
}


_SELDOM = (0.5, 0.3, 0.25, 0.2)  # residual scales
_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """EDSR checkpoints of EDSR-PyTorch's and BasicSR's layouts."""

    name, can_project = "edsr", True
    Hyper = Hyper
    signs: ClassVar = {
        "original": ("head.0.weight", "body.0.body.0.weight", "body.0.body.2.weight"),
        "basicsr": ("conv_first.weight", "body.0.conv1.weight", "body.0.conv2.weight"),
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        for layout, rules in (("original", _ORIGINAL), ("basicsr", _BASICSR)):
            found = rename_keys(state, rules)
            if found and all(key in state for key in self.signs[layout]):
                end = str(count_indices(found, "blocks."))
                return layout, fold_shift({k.replace("END", end): v for k, v in found.items()})
        return None

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        # res_scale is not stored: 0.1 in the authors' 256-wide net, 1 in their narrow ones.
        channels = int(state["lift.weight"].shape[0])
        scale, direct = read_upsampler(state, channels)
        fields, settled = settle_range(state, layout)
        res_scale = 0.1 if channels >= 256 else 1.0
        settled["res_scale"] = f"assumed from layout {layout}: {res_scale} at {channels} channels"
        hyper = Hyper(
            scale, channels, count_indices(state, "blocks.") - 1, direct, res_scale=res_scale
        )
        return replace(hyper, **fields), settled  # type: ignore[arg-type]

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        usual = (0.1, 1.0) if hyper.res_scale == 0.1 else (1.0, 0.1)
        found = [tried for r in usual for tried in list_ranges(replace(hyper, res_scale=r))]
        shifted = [replace(hyper, image_range=r, mean=DIV2K_MEAN) for r in (255.0, 1.0)]
        return found + [replace(h, res_scale=r) for r in _SELDOM for h in shifted]

    def make(self, hyper: _Hyper) -> EDSR:
        return EDSR(hyper)

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=64, blocks=32)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c64b32`: channels and residual blocks."""
        if not budget:
            heavy = hyper.channels == 256 and hyper.blocks == 32
            width, depth = (64, 32) if heavy else (hyper.channels // 2, hyper.blocks // 2)
            sizes = {"channels": max(8, width), "blocks": max(1, depth)}
        else:
            sizes = parse_budget(self.name, budget, {"c": "channels", "b": "blocks"})
        small = replace(hyper, **sizes)  # type: ignore[arg-type]
        return replace(small, res_scale=0.1 if small.channels >= 256 else 1.0)

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        """As in `Arch`; the ratio of the residual scales goes into the weights."""
        end = len(teacher.blocks) - 1
        sources = spread_evenly(len(student.blocks) - 1, end)
        weights = take_blocks(teacher.state_dict(), [*sources, end])
        for index, source in enumerate(sources):
            ratio = float(teacher.blocks[source].res_scale / student.blocks[index].res_scale)  # type: ignore[arg-type, operator]
            for part in ("weight", "bias"):
                key = f"blocks.{index}.body.2.{part}"
                weights[key] = weights[key] * ratio  # not in place: it is the teacher's tensor
        inherit_channels(student, weights, axes_of(student))

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        project(cast("EDSR", student), cast("EDSR", teacher), lr_NCHW)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        return original_names(net)


def original_names(net: SRNet) -> dict[str, Tensor]:
    """The weights under the key names of EDSR-PyTorch and RCAN, mean shift layers included."""
    rules = {r"lift\.": "head.0.", r"blocks\.": "body.", r"last\.": "tail.1."}
    direct = isinstance(net.last, nn.Identity)
    rules[r"up\.0\." if direct else r"up\."] = "tail.0."
    named = restore_keys(net, rules)
    assert isinstance(net.mean, Tensor)
    assert isinstance(net.image_range, float)
    shift = net.mean.flatten() * net.image_range
    if bool(shift.any()):
        eye = torch.eye(3).view(3, 3, 1, 1)
        named |= {"sub_mean.weight": eye, "sub_mean.bias": -shift}
        named |= {"add_mean.weight": eye.clone(), "add_mean.bias": shift.clone()}
    return named


def axes_of(net: SRNet) -> Axes:
    """Which channels each dimension of EDSR's weights runs over."""
    direct = isinstance(net.last, nn.Identity)
    shuffle = 9 if net.scale == 3 else 4
    steps = len(net.up) // 2  # type: ignore[arg-type]

    def axes(name: str) -> tuple[Axis | None, ...]:
        stream = Axis("stream")
        if name.startswith("lift."):
            return (stream, None)
        if match := re.match(r"blocks\.(\d+)\.body\.(\d)\.", name):
            inner = Axis(f"inner {match[1]}")
            return (inner, stream) if match[2] == "0" else (stream, inner)
        if name.startswith("blocks."):
            return (stream, stream)
        if direct:
            return (None, stream)
        if match := re.match(r"up\.(\d)\.", name):
            step = int(match[1]) // 2
            return (Axis(f"up {step}", shuffle), Axis(f"up {step - 1}") if step else stream)
        return (None, Axis(f"up {steps - 1}"))

    return axes


ARCH = Family()
