"""LKDN (Xie et al., 2023): blocks of 1x1 and depthwise convolutions with attention of a large
kernel, and a fusion of all blocks.

Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
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


@dataclass(frozen=True)
class Hyper:
    """Sizes, and the image range, which no tensor tells."""

    scale: int
    channels: int
    blocks: int
    attention: int  # channels inside the attention
    image_range: float = 1.0


class SplitConv(nn.Module):
    """A 1x1 convolution, then one of 3x3 for each channel alone (BSConvU)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dw = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        mixed: Tensor = self.dw(self.pw(x_NCHW))
        return mixed


class LargeKernelAttention(nn.Module):
    """Each feature times a gate that sees 17 pixels around it (LKA)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pointwise = conv(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.depthwise_dilated = nn.Conv2d(
            channels, channels, 5, padding=6, groups=channels, dilation=3
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        gate: Tensor = self.depthwise_dilated(self.depthwise(self.pointwise(x_NCHW)))
        return x_NCHW * gate


class Block(nn.Module):
    """Large-kernel distillation (LKDB): half of the channels is kept beside each convolution; what
    was kept is mixed, gated, normalised and added to the input."""

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        channels, kept = hyper.channels, hyper.channels // 2
        self.c1_d, self.c1_r = conv(channels, kept, 1), SplitConv(channels, channels)
        self.c2_d, self.c2_r = conv(channels, kept, 1), SplitConv(channels, channels)
        self.c3_d, self.c3_r = conv(channels, kept, 1), SplitConv(channels, channels)
        self.c4 = SplitConv(channels, kept)
        self.c5 = conv(4 * kept, hyper.attention, 1)
        self.atten = LargeKernelAttention(hyper.attention)
        self.c6 = conv(hyper.attention, channels, 1)
        self.pixel_norm = nn.LayerNorm(channels)
        nn.init.constant_(self.pixel_norm.weight, 0.1)  # as its authors start

    def forward(self, x_NCHW: Tensor) -> Tensor:
        kept, rest = [], x_NCHW
        for short, long in (
            (self.c1_d, self.c1_r),
            (self.c2_d, self.c2_r),
            (self.c3_d, self.c3_r),
        ):
            kept.append(F.gelu(short(rest)))
            rest = F.gelu(long(rest))
        mixed = self.c5(torch.cat([*kept, F.gelu(self.c4(rest))], 1))
        gated = self.c6(self.atten(mixed))
        norm_NCHW: Tensor = self.pixel_norm(gated.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return norm_NCHW + x_NCHW


class LKDN(TrunkNet):
    """LKDN."""

    def __init__(self, hyper: Hyper) -> None:
        super().__init__(
            [Block(hyper) for _ in range(hyper.blocks)],
            channels=hyper.channels,
            scale=hyper.scale,
            image_range=hyper.image_range,
            lift=SplitConv(3, hyper.channels),
            activation=nn.GELU(),
            last=SplitConv(hyper.channels, hyper.channels),
        )


_ORIGINAL = {
    r"fea_conv\.": "lift.",
    r"B(\d+)\.": r"blocks.\1.block.",
    r"c1\.bias": "fuse_bias",
    r"c1\.weight": "fuse.weight",
    r"c2\.": "last.",
    r"upsampler\.0\.": "up.0.",
}

_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """LKDN checkpoints of the authors' layout: LKDN, and LKDN-S with its training branches or
    without."""

    name = "lkdn"
    Hyper = Hyper
    signs: ClassVar = {
        "original": ("fea_conv.pw.weight", "B1.c1_d.weight", "B1.atten.depthwise_dilated.weight")
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        if not all(key in state for key in self.signs["original"]):
            return None
        found = rename_keys(_merge_upsampler(_merge_branches(state)), _ORIGINAL)
        if not found:
            return None
        found["lift.pw.weight"] = _join_copies(found["lift.pw.weight"])
        return "original", split_fusion(count_blocks_from_0(found), "fuse.weight")

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        channels, attention = state["blocks.0.block.c6.weight"].shape[:2]
        hyper = Hyper(
            scale=round((state["up.0.weight"].shape[0] / 3) ** 0.5),
            channels=int(channels),
            blocks=count_indices(state, "blocks."),
            attention=int(attention),
        )
        return hyper, {"image_range": f"assumed from layout {layout}: its authors' 0 to 1"}

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        return [replace(hyper, image_range=r) for r in (1.0, 255.0)]

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=56, blocks=8, attention=56)

    def make(self, hyper: _Hyper) -> LKDN:
        return LKDN(hyper)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c42b5a42`: channels, blocks and channels inside the attention; without `a` these keep
        their ratio to the channels. The authors' smaller net is c42b5."""
        sizes = {"channels": max(2, hyper.channels // 2), "blocks": max(1, hyper.blocks // 2)}
        if budget:
            letters = {"c": "channels", "b": "blocks", "a": "attention"}
            sizes = parse_budget(self.name, budget, letters)
        channels = sizes.get("channels", hyper.channels)
        attention = max(1, hyper.attention * channels // hyper.channels)
        return replace(hyper, **{"attention": attention, **sizes})

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        inherit_trunk(student, teacher, _axes, _cuts)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        rules = {r"lift\.": "fea_conv.", r"last\.": "c2.", r"up\.0\.": "upsampler.0."}
        rules |= {r"fuse\.weight": "c1.weight", "fuse_bias": "c1.bias"}
        rules |= {rf"blocks\.{i}\.block\.": f"B{i + 1}." for i in range(len(net.blocks))}
        found = rename_keys(join_fusion(net, "fuse.weight"), rules)
        assert found is not None, "the rules cover all keys"
        return found


def _join_copies(weight: Tensor) -> Tensor:
    """The first kernel on one image; the authors' net reads the same image four times."""
    return weight.view(len(weight), -1, 3, 1, 1).sum(1)


def _merge_branches(state: StateDict) -> dict[str, Tensor]:
    """Kernels of LKDN-S with what runs beside them in training: x + pw(x), then the same for the
    depthwise one, with a 1x1 beside it."""
    merged = {key: value for key, value in state.items() if ".rep1x1." not in key}
    for key in [key for key in state if key.endswith(".rep1x1.weight")]:
        name = key.removesuffix("rep1x1.weight")
        mixing, alone = state[f"{name}pw.weight"], state[f"{name}dw.weight"]
        merged[f"{name}pw.weight"] = mixing + torch.eye(len(mixing))[..., None, None]
        merged[f"{name}dw.weight"] = alone + F.pad(state[key] + 1, (1, 1, 1, 1))
        merged[f"{name}dw.bias"] = state[f"{name}dw.bias"] + state[f"{name}rep1x1.bias"]
    return merged


def _merge_upsampler(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The upsampler's 1x1, its 3x3, and its 1x1 followed by 3x3 as one 3x3.

    Exact at the border too: there the authors pad by the 1x1's bias.
    """
    if "upsampler.conv1.weight" not in state:
        return state
    own = {key: state[key] for key in state if key.startswith("upsampler.")}
    merged = {key: value for key, value in state.items() if key not in own}
    short, wide, first, second = (
        (own[f"upsampler.{name}.weight"], own[f"upsampler.{name}.bias"])
        for name in ("conv1", "conv3", "conv1x1", "conv3x3")
    )
    chain = torch.einsum("omkl,mi->oikl", second[0], first[0][..., 0, 0])
    merged["upsampler.0.weight"] = wide[0] + F.pad(short[0], (1, 1, 1, 1)) + chain
    passed = torch.einsum("omkl,m->o", second[0], first[1])
    merged["upsampler.0.bias"] = short[1] + wide[1] + second[1] + passed
    return merged


def _cuts(name: str) -> tuple[int, tuple[int, ...]] | None:
    """c5 sees what was kept four times."""
    return (1, (1, 1, 1, 1)) if name.endswith(".block.c5.weight") else None


def _axes(name: str) -> tuple[Axis | None, ...]:
    """Which channels each dimension of a weight, or of a part of one, runs over.

    Blocks add to their input, and the last layer to the head's features: one stream."""
    stream, fused = Axis("stream"), Axis("fused")
    alone = ".dw." in name or ".depthwise" in name  # one kernel a channel
    match = re.match(r"blocks\.(\d+)\.block\.(\w+)(?:\.\w+)*?(?:#(\d))?$", name)
    if match is None:
        layer = name.split(".")[0]
        outside = {"lift": (stream, None), "up": (None, stream), "last": (stream, fused)}
        out, into = outside.get(layer, (fused, stream))  # fuse_bias, and a block's share
        return (out, None if alone else into)
    block, layer, part = match[1], match[2], int(match[3] or 0)
    gated, kept = Axis(f"gated {block}"), Axis(f"kept {block}.{part + 1}")
    known = {"c5": (gated, kept), "c6": (stream, gated), "pixel_norm": (stream, None)}
    known["atten"] = (gated, gated)
    if layer in known:
        out, into = known[layer]
        return (out, None if alone else into)
    at = int(layer[1])  # c1_d, c1_r, ..., c4
    before = Axis(f"rest {block}.{at - 1}") if at > 1 else stream
    after = Axis(f"rest {block}.{at}") if layer.endswith("_r") else Axis(f"kept {block}.{at}")
    return (after, None if alone else before)


ARCH = Family()
