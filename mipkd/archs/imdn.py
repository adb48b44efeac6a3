"""IMDN (Hui et al., 2019): blocks that keep a quarter of their channels at each convolution, and
a fusion of all blocks.

Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from mipkd.archs._parts import Axis, conv, count_indices, parse_budget, rename_keys
from mipkd.archs._trunk import (
    TrunkNet,
    count_blocks_from_0,
    inherit_trunk,
    join_fusion,
    split_fusion,
)
from mipkd.archs.base import Arch, SRNet, StateDict
from mipkd.core.errors import UsageError

_SLOPE = 0.05  # of the leaky ReLUs
_LEAST_VARIANCE = 1e-10  # where a channel is constant the root has no gradient
_KEPT = 4  # a block's convolutions keep one of so many parts of their channels


@dataclass(frozen=True)
class Hyper:
    """Sizes, and the image range, which no tensor tells."""

    scale: int
    channels: int
    blocks: int
    squeeze: int = 4  # channels inside the attention
    image_range: float = 1.0


class ContrastAttention(nn.Module):
    """Contrast-aware channel attention (CCA): each channel times a gate computed from the mean
    plus the standard deviation of all channels."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            conv(channels, squeeze, 1), nn.ReLU(), conv(squeeze, channels, 1), nn.Sigmoid()
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mean = x_NCHW.mean((2, 3), keepdim=True)
        # Not square(): QAT finds operations by the names that they have in the exported graph.
        variance = (x_NCHW - mean).pow(2).mean((2, 3), keepdim=True)
        gate: Tensor = self.conv_du(variance.clamp_min(_LEAST_VARIANCE).sqrt() + mean)
        return x_NCHW * gate


class Block(nn.Module):
    """Information multi-distillation (IMDB): of each convolution's channels a quarter is kept and
    the rest goes on; what was kept is gated, mixed and added to the input."""

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        channels = hyper.channels
        kept = channels // _KEPT
        self.c1 = conv(channels, channels)
        self.c2 = conv(channels - kept, channels)
        self.c3 = conv(channels - kept, channels)
        self.c4 = conv(channels - kept, kept)
        self.c5 = conv(channels, channels, 1)
        self.cca = ContrastAttention(channels, hyper.squeeze)
        self.act = nn.LeakyReLU(_SLOPE)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        kept, rest = [], x_NCHW
        for layer in (self.c1, self.c2, self.c3):
            active = self.act(layer(rest))
            few = active.shape[1] // _KEPT
            kept.append(active[:, :few])
            rest = active[:, few:]
        gated = self.cca(torch.cat([*kept, self.c4(rest)], 1))
        mixed: Tensor = self.c5(gated)
        return mixed + x_NCHW


class IMDN(TrunkNet):
    """IMDN."""

    def __init__(self, hyper: Hyper) -> None:
        super().__init__(
            [Block(hyper) for _ in range(hyper.blocks)],
            channels=hyper.channels,
            scale=hyper.scale,
            image_range=hyper.image_range,
            lift=conv(3, hyper.channels),
            activation=nn.LeakyReLU(_SLOPE),
            last=conv(hyper.channels, hyper.channels),
        )


_ORIGINAL = {
    r"fea_conv\.(weight|bias)": r"lift.\1",
    r"IMDB(\d+)\.": r"blocks.\1.block.",
    r"c\.0\.bias": "fuse_bias",
    r"c\.0\.weight": "fuse.weight",
    r"LR_conv\.": "last.",
    r"upsampler\.0\.": "up.0.",
}

_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """IMDN checkpoints of the authors' layout."""

    name = "imdn"
    Hyper = Hyper
    signs: ClassVar = {
        "original": ("fea_conv.weight", "IMDB1.c1.weight", "IMDB1.cca.conv_du.0.weight")
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        found = rename_keys(state, _ORIGINAL)
        if not found or not all(key in state for key in self.signs["original"]):
            return None
        return "original", split_fusion(count_blocks_from_0(found), "fuse.weight")

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        squeeze, channels = state["blocks.0.block.cca.conv_du.0.weight"].shape[:2]
        hyper = Hyper(
            scale=round((state["up.0.weight"].shape[0] / 3) ** 0.5),
            channels=int(channels),
            blocks=count_indices(state, "blocks."),
            squeeze=int(squeeze),
        )
        return hyper, {"image_range": f"assumed from layout {layout}: its authors' 0 to 1"}

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        return [replace(hyper, image_range=r) for r in (1.0, 255.0)]

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=64, blocks=6)

    def make(self, hyper: _Hyper) -> IMDN:
        return IMDN(hyper)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c32b3`: channels, a multiple of 4, and blocks."""
        half = max(_KEPT, hyper.channels // 2 // _KEPT * _KEPT)
        sizes = {"channels": half, "blocks": max(1, hyper.blocks // 2)}
        if budget:
            sizes = parse_budget(self.name, budget, {"c": "channels", "b": "blocks"})
        channels = sizes.get("channels", hyper.channels)
        if channels % _KEPT:
            raise UsageError(
                f"--student: {channels} channels of imdn:{budget}: a block keeps a quarter of them",
                hint=f"give a multiple of {_KEPT}, such as imdn:c{max(1, channels // 4) * 4}",
            )
        return replace(hyper, squeeze=min(hyper.squeeze, channels), **sizes)

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        inherit_trunk(student, teacher, _axes, _cuts)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        rules = {r"lift\.": "fea_conv.", r"last\.": "LR_conv.", r"up\.0\.": "upsampler.0."}
        rules |= {r"fuse\.weight": "c.0.weight", "fuse_bias": "c.0.bias"}
        rules |= {rf"blocks\.{i}\.block\.": f"IMDB{i + 1}." for i in range(len(net.blocks))}
        found = rename_keys(join_fusion(net, "fuse.weight"), rules)
        assert found is not None, "the rules cover all keys"
        return found


def _cuts(name: str) -> tuple[int, tuple[int, ...]] | None:
    """A convolution's outputs are kept ones and the rest; attention and c5 see four times kept."""
    layer, _, kind = name.partition(".block.")[2].rpartition(".")
    if layer in ("c1", "c2", "c3"):
        return 0, (1, _KEPT - 1)
    if layer == "cca.conv_du.2":
        return 0, (1,) * _KEPT
    return (1, (1,) * _KEPT) if kind == "weight" and layer in ("c5", "cca.conv_du.0") else None


def _axes(name: str) -> tuple[Axis | None, ...]:
    """Which channels each dimension of a weight, or of a part of one, runs over.

    Blocks add to their input, and the last layer to the head's features: one stream."""
    stream, fused = Axis("stream"), Axis("fused")
    match = re.match(r"blocks\.(\d+)\.block\.(.+)\.\w+?(?:#(\d))?$", name)
    if match is None:
        layer = name.split(".")[0]
        outside = {"lift": (stream, None), "up": (None, stream), "last": (stream, fused)}
        return outside.get(layer, (fused, stream))  # fuse_bias, and a block's share
    block, layer, part = match[1], match[2], int(match[3] or 0)
    at = int(layer[1]) if layer[0] == "c" and layer[1:].isdigit() else 0
    kept, inner = Axis(f"kept {block}.{part + 1}"), Axis(f"inner {block}")
    if layer == "c5":
        return (stream, kept)
    if layer.startswith("cca"):
        return (inner, kept) if layer.endswith("0") else (kept, inner)
    before = Axis(f"rest {block}.{at - 1}") if at > 1 else stream
    return (Axis(f"rest {block}.{at}") if part else Axis(f"kept {block}.{at}"), before)


ARCH = Family()
