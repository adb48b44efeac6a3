"""Compact (SRVGGNetCompact of Real-ESRGAN, Wang et al., 2021): convolutions and PReLUs, and the
nearest neighbours of the LR image added.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._chain_projection import Link, project_chain
from mipkd.archs._parts import (
    COLOUR_ENDS,
    Axis,
    conv,
    inherit_channels,
    make_upsampler,
    parse_budget,
    restore_keys,
    spread_evenly,
    take_blocks,
)
from mipkd.archs.base import Arch, SRNet, StateDict


@dataclass(frozen=True)
class Hyper:
    """Sizes; all tensors tell them."""

    scale: int
    channels: int
    blocks: int


class Block(nn.Sequential):
    """A convolution and a PReLU with a slope for each channel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(conv(inputs, outputs), nn.PReLU(outputs))


class Compact(SRNet):
    """Compact."""

    repeats: Tensor

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        self.scale, self.width = hyper.scale, hyper.channels
        self.lift = Block(3, hyper.channels)
        self.blocks = nn.ModuleList(
            Block(hyper.channels, hyper.channels) for _ in range(hyper.blocks)
        )
        self.up = make_upsampler(hyper.channels, hyper.scale, direct=True)
        # Nearest neighbours as a convolution with weights 0 and 1 before the shuffle: exactly the
        # same, and many NPUs have no other way to do it.
        repeats = torch.eye(3).repeat_interleave(hyper.scale**2, 0)
        self.register_buffer("repeats", repeats[..., None, None], persistent=False)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        shallow: Tensor = self.lift(lr_NCHW)
        return shallow

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        last, shuffle = self.up
        image: Tensor = shuffle(last(features_NCHW) + F.conv2d(lr_NCHW, self.repeats))
        return image


_PART = r"body\.(\d+)\.(weight|bias)"

_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """Checkpoints of Real-ESRGAN, BasicSR and traiNNer: realesr-general-x4v3, animevideo and
    those of OpenModelDB."""

    name, can_project = "compact", True
    Hyper = Hyper
    signs: ClassVar = {"original": ("body.0.weight", "body.1.weight", "body.2.weight")}

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        parts = [re.fullmatch(_PART, key) for key in state]
        if not all(parts) or not all(key in state for key in self.signs["original"]):
            return None
        last = max(int(part[1]) for part in parts if part)
        ends = state["body.0.weight"].shape[1], len(state[f"body.{last}.weight"])
        if last % 2 or ends not in COLOUR_ENDS:  # of grey images, or x1: not ours
            return None
        found = {}
        for key, value in state.items():
            index, kind = cast("re.Match[str]", re.fullmatch(_PART, key)).groups()
            found[f"{_name(int(index), last)}.{kind}"] = value
        return "original", found

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        pixels, channels = state["up.0.weight"].shape[:2]
        blocks = sum(key.endswith(".0.weight") and key.startswith("blocks.") for key in state)
        return Hyper(round((pixels / 3) ** 0.5), int(channels), blocks), {}

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=64, blocks=16)

    def make(self, hyper: _Hyper) -> Compact:
        return Compact(hyper)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c24b8`: channels and convolutions between the first and the last."""
        sizes = {"channels": max(8, hyper.channels // 2), "blocks": max(1, hyper.blocks // 2)}
        if budget:
            sizes = parse_budget(self.name, budget, {"c": "channels", "b": "blocks"})
        return replace(hyper, **sizes)

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        sources = spread_evenly(len(student.blocks), len(teacher.blocks))
        inherit_channels(student, take_blocks(teacher.state_dict(), sources), _axes)

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        nets = cast("Compact", student), cast("Compact", teacher)
        ups = cast("nn.Conv2d", nets[0].up[0]), cast("nn.Conv2d", nets[1].up[0])
        project_chain(_links(nets[0]), _links(nets[1]), ups, lr_NCHW)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        rules = {r"lift\.([01])\.": r"body.\1."}
        for index in range(len(net.blocks)):
            rules |= {
                rf"blocks\.{index}\.{part}\.": f"body.{2 * index + 2 + part}." for part in (0, 1)
            }
        return restore_keys(net, {**rules, r"up\.0\.": f"body.{2 * len(net.blocks) + 2}."})


def _name(index: int, last: int) -> str:
    """Our name of `body.INDEX`, where `body.LAST` is the last convolution."""
    if index == last:
        return "up.0"
    return f"lift.{index}" if index < 2 else f"blocks.{index // 2 - 1}.{index % 2}"


def _links(net: Compact) -> list[Link]:
    blocks = [net.lift, *(cast("Block", block) for block in net.blocks)]
    return [Link(cast("nn.Conv2d", conv), slopes) for conv, slopes in blocks]


def _axes(name: str) -> tuple[Axis | None, ...]:
    """Which channels each dimension of a weight runs over. Blocks have one stream, so that evenly
    spaced ones fit behind each other."""
    stream = Axis("stream")
    if name.startswith("lift."):
        return (stream, None)
    return (None, stream) if name.startswith("up.") else (stream, stream)


ARCH = Family()
