"""EDSR (Lim et al., 2017): residual blocks without normalisation, one long skip.

Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mipkd.archs._fold import Folded
from mipkd.archs._parts import (
    DIV2K_MEAN,
    Axes,
    Axis,
    conv,
    count_of,
    cut,
    evenly,
    parse_budget,
    read_upsampler,
    renamed,
    upsampler,
)
from mipkd.archs._shift import folded, ranges_to_try, settle_range
from mipkd.archs.base import SRNet, StateDict


@dataclass(frozen=True)
class Hyper:
    """Sizes, and what no tensor tells: range, residual scale and mean shift."""

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
        """Features of the same shape."""
        residual: Tensor = self.body(x_NCHW)
        return x_NCHW + (residual if self.res_scale == 1 else residual * self.res_scale)


class ShiftedNet(SRNet):
    """Head and tail of the nets that work on shifted pixels of `image_range`."""

    mean: Tensor

    def __init__(self, hyper: Any, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.scale, self.width = hyper.scale, hyper.channels
        self.image_range = hyper.image_range
        shift = torch.tensor(hyper.mean or (0.0, 0.0, 0.0)).view(1, 3, 1, 1)
        self.register_buffer("mean", shift, persistent=False)
        self.lift = conv(3, hyper.channels)
        self.blocks = nn.ModuleList([*blocks, conv(hyper.channels, hyper.channels)])
        self.up = upsampler(hyper.channels, hyper.scale, direct=hyper.direct)
        self.last = nn.Identity() if hyper.direct else conv(hyper.channels, 3)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        """Shallow features (N, width, H, W)."""
        shallow: Tensor = self.lift((lr_NCHW - self.mean) * self.image_range)
        return shallow

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor) -> Tensor:
        """The image from the body's end plus the long skip."""
        deep = self.up(features_NCHW + shallow_NCHW)
        pixels: Tensor = self.last(deep) / self.image_range + self.mean
        return pixels

    def exported(self) -> SRNet:
        """The same on pixels of range 1 that are not shifted."""
        return Folded(self, image_range=self.image_range, mean=self.mean)


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


_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family:
    """EDSR checkpoints of EDSR-PyTorch's and BasicSR's layouts."""

    name = "edsr"
    Hyper = Hyper
    signs = {  # noqa: RUF012
        "original": ("head.0.weight", "body.0.body.0.weight", "body.0.body.2.weight"),
        "basicsr": ("conv_first.weight", "body.0.conv1.weight", "body.0.conv2.weight"),
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        """The layout's name and the weights under our key names."""
        for layout, rules in (("original", _ORIGINAL), ("basicsr", _BASICSR)):
            found = renamed(state, rules)
            if found and all(key in state for key in self.signs[layout]):
                end = str(count_of(found, "blocks."))
                return layout, folded({k.replace("END", end): v for k, v in found.items()})
        return None

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        """Sizes from shapes; range and mean from the layout; res_scale by convention."""
        channels = int(state["lift.weight"].shape[0])
        scale, direct = read_upsampler(state, channels)
        fields, settled = settle_range(state, layout)
        res_scale = 0.1 if channels >= 256 else 1.0
        settled["res_scale"] = f"layout {layout}: {res_scale} at {channels} channels"
        hyper = Hyper(scale, channels, count_of(state, "blocks.") - 1, direct, res_scale=res_scale)
        return replace(hyper, **fields), settled  # type: ignore[arg-type]

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        """Range, mean and both residual scales."""
        others = (0.1, 1.0) if hyper.res_scale == 0.1 else (1.0, 0.1)
        return [tried for r in others for tried in ranges_to_try(replace(hyper, res_scale=r))]

    def make(self, hyper: _Hyper) -> EDSR:
        """A net with random weights."""
        return EDSR(hyper)

    def paper(self, scale: int) -> _Hyper:
        """The student of the MiPKD paper."""
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
        """Evenly spaced blocks, the strongest channels; res_scale folded into the weights."""
        weights = dict(teacher.state_dict())
        picked = evenly(len(student.blocks) - 1, len(teacher.blocks) - 1)
        renumbered = {}
        for index, source in enumerate([*picked, len(teacher.blocks) - 1]):
            prefix = f"blocks.{source}."
            for key in [k for k in weights if k.startswith(prefix)]:
                renumbered[f"blocks.{index}." + key.removeprefix(prefix)] = weights[key]
        for index, source in enumerate(picked):
            ratio = float(teacher.blocks[source].res_scale / student.blocks[index].res_scale)  # type: ignore[arg-type, operator]
            for part in ("weight", "bias"):
                renumbered[f"blocks.{index}.body.2.{part}"] *= ratio
        others = {k: v for k, v in weights.items() if not k.startswith("blocks.")}
        cut(student, {**others, **renumbered}, axes_of(student))

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        """Every layer by regression; channels are directions of the teacher's stream."""
        from mipkd.archs._edsr_projection import project

        assert isinstance(student, EDSR)
        assert isinstance(teacher, EDSR)
        project(student, teacher, lr_NCHW)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        """EDSR-PyTorch's key names."""
        return original_names(net)


def original_names(net: SRNet) -> dict[str, Tensor]:
    """Key names of EDSR-PyTorch and RCAN, mean shift layers included."""
    rules = {r"lift\.": "head.0.", r"blocks\.": "body.", r"last\.": "tail.1."}
    direct = isinstance(net.last, nn.Identity)
    rules[r"up\.0\." if direct else r"up\."] = "tail.0."
    named = renamed(net.state_dict(), rules)
    assert named is not None
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
