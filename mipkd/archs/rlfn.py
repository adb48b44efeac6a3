"""RLFN (Kong et al., CVPR workshops 2022): plain convolutions and spatial attention (ESA).

Shapes: N batch, C channels, G channels of the gate, H W low-res size. Images: float32 in [0, 1].
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._fold import FoldedNet
from mipkd.archs._parts import (
    Axes,
    Axis,
    conv,
    count_indices,
    inherit_channels,
    make_upsampler,
    parse_budget,
    rename_keys,
    restore_keys,
    spread_evenly,
    take_blocks,
)
from mipkd.archs._rlfn_projection import project
from mipkd.archs.base import Arch, SRNet, StateDict

_SEEN = 15  # pixels a side that the attention's pooling needs for its first value


@dataclass(frozen=True)
class Hyper:
    """Sizes, and the image range, which no tensor tells."""

    scale: int
    channels: int
    blocks: int
    middle: int  # channels between a block's convolutions; the authors' pruned net has more
    gate: int = 16  # channels inside the attention
    image_range: float = 255.0


class Gate(nn.Module):
    """Enhanced spatial attention (ESA): each feature times a gate that is computed from its own
    pixel and from the maxima around it."""

    def __init__(self, channels: int, gate: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, gate, 1)
        self.conv2 = nn.Conv2d(gate, gate, 3, stride=2)
        self.conv3 = conv(gate, gate)
        self.conv_f = conv(gate, gate, 1)
        self.conv4 = conv(gate, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        gate: Tensor = self.conv4(self.gate_features(x_NCHW)).sigmoid()
        return x_NCHW * gate

    def gate_features(self, x_NCHW: Tensor) -> Tensor:
        """What the gate is computed from, (N, G, H, W); images under 15 pixels a side are padded
        with their edge."""
        height, width = x_NCHW.shape[-2:]
        own_NGHW = self.conv1(x_NCHW)
        seen = own_NGHW
        if height < _SEEN or width < _SEEN:
            more = (0, max(0, _SEEN - width), 0, max(0, _SEEN - height))
            seen = F.pad(seen, more, mode="replicate")
        around = self.conv3(F.max_pool2d(self.conv2(seen), 7, stride=3))
        around_NGHW = F.interpolate(around, (height, width), mode="bilinear", align_corners=False)
        seen_NGHW: Tensor = around_NGHW + self.conv_f(own_NGHW)
        return seen_NGHW


class Block(nn.Module):
    """Three convolutions added to the input, a 1x1 convolution and the gate (RLFB)."""

    slope = 0.05  # of the leaky ReLUs

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        channels, middle = hyper.channels, hyper.middle
        self.c1_r = conv(channels, middle)
        self.c2_r = conv(middle, middle)
        self.c3_r = conv(middle, channels)
        self.c5 = conv(channels, channels, 1)
        self.esa = Gate(channels, hyper.gate)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        residual = x_NCHW
        for layer in (self.c1_r, self.c2_r, self.c3_r):
            residual = F.leaky_relu(layer(residual), self.slope)
        gated: Tensor = self.esa(self.c5(residual + x_NCHW))
        return gated


class RLFN(SRNet):
    """RLFN; the last of `blocks` is the convolution after the body."""

    smallest = _SEEN

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        self.scale, self.width = hyper.scale, hyper.channels
        self.image_range = hyper.image_range
        self.lift = conv(3, hyper.channels)
        blocks = [Block(hyper) for _ in range(hyper.blocks)]
        self.blocks = nn.ModuleList([*blocks, conv(hyper.channels, hyper.channels)])
        self.up = make_upsampler(hyper.channels, hyper.scale, direct=True)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        shallow: Tensor = self.lift(lr_NCHW * self.image_range)
        return shallow

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        pixels: Tensor = self.up(features_NCHW + shallow_NCHW)
        return pixels / self.image_range

    def to_exportable(self) -> SRNet:
        return FoldedNet(self, image_range=self.image_range, mean=None)


_ORIGINAL = {
    r"conv_1\.": "lift.",
    r"conv_2\.": "blocks.END.",
    r"block_(\d+)\.": r"blocks.\1.",
    r"upsampler\.0\.": "up.0.",
}

_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """RLFN checkpoints of the authors' layout: RLFN, RLFN-S and their pruned net."""

    name, can_project = "rlfn", True
    Hyper = Hyper
    signs: ClassVar = {
        "original": ("conv_1.weight", "block_1.c1_r.weight", "block_1.esa.conv_f.weight")
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        found = rename_keys(state, _ORIGINAL)
        if not found or not all(key in state for key in self.signs["original"]):
            return None
        end = count_indices(state, "block_")
        return "original", {_count_from_0(key, end): value for key, value in found.items()}

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        middle, channels = state["blocks.0.c1_r.weight"].shape[:2]
        hyper = Hyper(
            scale=round((state["up.0.weight"].shape[0] / 3) ** 0.5),
            channels=int(channels),
            blocks=count_indices(state, "blocks.") - 1,
            middle=int(middle),
            gate=int(state["blocks.0.esa.conv1.weight"].shape[0]),
        )
        return hyper, {"image_range": "unknown"}

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        # The authors' nets work in 0 to 255, others of the same key names in 0 to 1.
        return [replace(hyper, image_range=r) for r in (255.0, 1.0)]

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=52, blocks=6, middle=52)

    def make(self, hyper: _Hyper) -> RLFN:
        return RLFN(hyper)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c46b4m48`: channels, blocks and channels inside a block; without `m` these keep their
        ratio to the channels. The authors' smaller nets are c48b6 and c46b4m48."""
        sizes = {"channels": max(8, hyper.channels // 2), "blocks": max(1, hyper.blocks // 2)}
        if budget:
            letters = {"c": "channels", "b": "blocks", "m": "middle"}
            sizes = parse_budget(self.name, budget, letters)
        channels = sizes.get("channels", hyper.channels)
        middle = max(1, hyper.middle * channels // hyper.channels)
        small = {"middle": middle, "gate": min(hyper.gate, channels), **sizes}
        return replace(hyper, **small)

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        end = len(teacher.blocks) - 1
        sources = [*spread_evenly(len(student.blocks) - 1, end), end]
        weights = take_blocks(teacher.state_dict(), sources)
        inherit_channels(student, weights, _axes(len(student.blocks) - 1))

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        project(cast("RLFN", student), cast("RLFN", teacher), lr_NCHW)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        end = len(net.blocks) - 1
        rules = {r"lift\.": "conv_1.", r"up\.0\.": "upsampler.0.", rf"blocks\.{end}\.": "conv_2."}
        rules |= {rf"blocks\.{i}\.": f"block_{i + 1}." for i in range(end)}
        return restore_keys(net, rules)


def _count_from_0(key: str, end: int) -> str:
    key = key.replace("blocks.END.", f"blocks.{end + 1}.")
    return re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) - 1}", key)


def _axes(end: int) -> Axes:
    """Which channels each dimension of a weight runs over, in a net of `end` blocks.

    A block's 1x1 convolution mixes all channels, so its inputs and its outputs are selected
    independently. The last convolution's outputs are added to the head's features.
    """

    def axes(name: str) -> tuple[Axis | None, ...]:
        if name.startswith("lift."):
            return (Axis("stream 0"), None)
        if name.startswith("up."):
            return (None, Axis("stream 0"))
        match = re.match(r"blocks\.(\d+)\.(?:esa\.)?(\w+)\.\w+", name)
        if match is None:
            return (Axis("stream 0"), Axis(f"stream {end}"))
        block = match[1]
        before, after = Axis(f"stream {block}"), Axis(f"stream {int(block) + 1}")
        inner = [Axis(f"inner {block}.{i}") for i in range(2)]
        gate = [Axis(f"gate {block}.{i}") for i in range(3)]
        return {
            "c1_r": (inner[0], before),
            "c2_r": (inner[1], inner[0]),
            "c3_r": (before, inner[1]),
            "c5": (after, before),
            "conv1": (gate[0], after),
            "conv2": (gate[1], gate[0]),
            "conv3": (gate[2], gate[1]),
            "conv_f": (gate[2], gate[0]),
            "conv4": (after, gate[2]),
        }[match[2]]

    return axes


ARCH = Family()
