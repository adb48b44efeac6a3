"""SPAN (Wan et al., CVPR workshops 2024): blocks whose attention has no parameters, trained in
branches that are one convolution on the device.

Its last layers read the head's features, those after the first block and after the last, and the
last block's first activation. Their 1x1 convolution is kept as the share of each, which the blocks
add to a sum beside their features (as in mipkd/archs/_trunk.py): so the blocks can be run one by
one, as in any other net; what runs on a device is the authors' form.

Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._fold import fold_first
from mipkd.archs._parts import (
    COLOUR_ENDS,
    DIV2K_MEAN,
    Axis,
    count_indices,
    inherit_channels,
    make_upsampler,
    parse_budget,
    rename_keys,
    spread_evenly,
    take_blocks,
)
from mipkd.archs._span_blocks import Block, Branched, Step, merge_block
from mipkd.archs._span_projection import project
from mipkd.archs._trunk import count_blocks_from_0
from mipkd.archs.base import Arch, SRNet, StateDict


@dataclass(frozen=True)
class Hyper:
    """Sizes, and image range and mean, which no tensor tells."""

    scale: int
    channels: int
    blocks: int = 6  # the authors' layout knows no other number
    image_range: float = 255.0
    mean: tuple[float, ...] | None = DIV2K_MEAN


class SPAN(SRNet):
    """SPAN."""

    mean: Tensor

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        channels, count = hyper.channels, hyper.blocks
        self.scale, self.width = hyper.scale, 2 * channels
        self.image_range = hyper.image_range
        mean = torch.tensor(hyper.mean or (0.0, 0.0, 0.0))[:, None, None]
        self.register_buffer("mean", mean, persistent=False)
        self.lift = Branched(3, channels)
        self.blocks = nn.ModuleList(Step(channels, _reads(i, count)) for i in range(count))
        self.last = Branched(channels, channels)
        self.share_head = nn.Conv2d(channels, channels, 1, bias=False)
        self.share_last = nn.Conv2d(channels, channels, 1, bias=False)
        self.fuse_bias = nn.Parameter(torch.zeros(channels))
        self.up = make_upsampler(channels, hyper.scale, direct=True)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        shallow = self.lift((lr_NCHW - self.mean) * self.image_range)
        return torch.cat([shallow, torch.zeros_like(shallow)], 1)

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        shallow, (features, total) = shallow_NCHW.chunk(2, 1)[0], features_NCHW.chunk(2, 1)
        total = total + self.share_head(shallow) + self.share_last(self.last(features))
        image: Tensor = self.up(total + self.fuse_bias[:, None, None])
        return image

    @torch.no_grad()
    def set_folded(self, net: JoinedSpan) -> None:
        """Make the branches and shares equal those of a net of the same sizes, as deployed."""
        for name, module in self.named_modules():
            if isinstance(module, Branched):
                plain = cast("nn.Conv2d", net.get_submodule(name.replace(".block.", ".")))
                module.set_folded(plain.weight, cast("Tensor", plain.bias))
        shares = dict(self.named_parameters())
        for name, part in zip(
            _share_names(len(self.blocks)), net.fuse.weight.chunk(4, 1), strict=True
        ):
            shares[name].copy_(part)
        self.fuse_bias.copy_(cast("Tensor", net.fuse.bias))
        self.up.load_state_dict(net.up.state_dict())

    def to_deployed(self) -> SRNet:
        return JoinedSpan(self)

    def to_exportable(self) -> SRNet:
        return JoinedSpan(self, fold_range=True)


class JoinedSpan(SRNet):
    """SPAN as it runs on a device: convolutions without branches, one over all that is fused."""

    in_parts = False
    mean: Tensor | None  # None: folded into the first convolution, as is the range

    def __init__(self, net: SPAN, *, fold_range: bool = False) -> None:
        super().__init__()
        self.scale, self.width = net.scale, net.width // 2
        self.image_range, self.lift = net.image_range, net.lift.merge()
        self.register_buffer("mean", None if fold_range else net.mean, persistent=False)
        self.ones = fold_range and bool(net.mean.any())  # a fourth input channel
        if fold_range:
            self.lift = fold_first(self.lift, net.image_range, net.mean.flatten(), self.ones)
        self.blocks = nn.ModuleList(merge_block(cast("Step", step).block) for step in net.blocks)
        self.last, self.up = net.last.merge(), net.up
        weight = join_fusion(net.state_dict())
        with torch.device("meta"):
            self.fuse = nn.Conv2d(weight.shape[1], len(weight), 1)
        fused = {"weight": weight, "bias": net.fuse_bias.detach()}
        self.fuse.load_state_dict(fused, assign=True)
        self.train(net.training)

    def forward_with_taps(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        features = shallow = self.lift(self._scaled(lr_NCHW))
        found: list[Tensor] = []
        for block in self.blocks:
            features, first = cast("Block", block).with_first(features)
            found.append(features)
        fused = self.fuse(torch.cat([shallow, self.last(features), found[0], first], 1))
        image: Tensor = self.up(fused)
        return image, [found[p] for p in positions]

    def _scaled(self, lr_NCHW: Tensor) -> Tensor:
        if self.ones:
            return F.pad(lr_NCHW, (0, 0, 0, 0, 0, 1), value=1.0)
        return lr_NCHW if self.mean is None else (lr_NCHW - self.mean) * self.image_range


def _reads(index: int, count: int) -> tuple[str, ...]:
    """What the last layers read of a block: the first one's features, the last one's first
    activation."""
    return (*(("out",) if index == 0 else ()), *(("first",) if index == count - 1 else ()))


def _share_names(count: int) -> tuple[str, ...]:
    """Our keys of the fusion's weight, in the order of its inputs."""
    first, last = "blocks.0.shares.out.weight", f"blocks.{count - 1}.shares.first.weight"
    return ("share_head.weight", "share_last.weight", first, last)


def join_fusion(state: StateDict) -> Tensor:
    """The shares of a state dict of ours as one weight (C, 4C, 1, 1)."""
    return torch.cat([state[name] for name in _share_names(count_indices(state, "blocks."))], 1)


_ORIGINAL = {
    r"(?:.*\.)?eval_conv\..*": "",  # what the authors' program made of the branches, maybe earlier
    r"conv_1\.": "lift.",
    r"block_(\d+)\.": r"blocks.\1.block.",
    r"conv_2\.": "last.",
    r"conv_cat\.bias": "fuse_bias",
    r"conv_cat\.weight": "fuse.weight",
    r"upsampler\.0\.": "up.0.",
    "no_norm": "",
}

_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """SPAN checkpoints of the authors' layout, as BasicSR, traiNNer and OpenModelDB have it."""

    name, can_project = "span", True
    Hyper = Hyper
    signs: ClassVar = {
        "original": ("conv_1.sk.weight", "block_1.c1_r.sk.weight", "conv_cat.weight")
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        if not all(key in state for key in self.signs["original"]):
            return None
        found = rename_keys(state, _ORIGINAL)
        ends = (found["lift.sk.weight"].shape[1], len(found["up.0.weight"])) if found else None
        if not found or ends not in COLOUR_ENDS:
            return None
        found = count_blocks_from_0(found)
        names = _share_names(count_indices(found, "blocks."))
        shares = found.pop("fuse.weight").chunk(len(names), 1)
        found |= {name: share.contiguous() for name, share in zip(names, shares, strict=True)}
        return "plain" if "no_norm" in state else "original", found

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        hyper = Hyper(
            scale=round((state["up.0.weight"].shape[0] / 3) ** 0.5),
            channels=int(state["lift.sk.weight"].shape[0]),
            blocks=count_indices(state, "blocks."),
        )
        if layout == "plain":
            how = "no_norm is in the file"
            plain = replace(hyper, image_range=1.0, mean=None)
            return plain, {"image_range": how, "mean": how}
        how = "assumed from layout original: its authors' 255, less the mean of DIV2K"
        return hyper, {"image_range": how, "mean": how}

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        if hyper.mean is None:
            return [hyper]
        return [hyper, replace(hyper, image_range=1.0), replace(hyper, image_range=1.0, mean=None)]

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=48)

    def make(self, hyper: _Hyper) -> SPAN:
        return SPAN(hyper)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c36b6`: channels and blocks; other programs read nets of six blocks only."""
        sizes = {"channels": max(8, hyper.channels // 2)}
        if budget:
            sizes = parse_budget(self.name, budget, {"c": "channels", "b": "blocks"})
        return replace(hyper, **sizes)  # type: ignore[arg-type]

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        """As in `Arch`; the first and the last block stay what they are, for the fusion."""
        few, many = len(student.blocks), len(teacher.blocks)
        inner = [1 + index for index in spread_evenly(max(0, few - 2), max(1, many - 2))]
        sources = [0, *(min(one, many - 1) for one in inner), many - 1] if few > 1 else [many - 1]
        weights = take_blocks(teacher.state_dict(), sources)
        if few == 1:  # it stands for both: what is read of the first block is read of it
            weights["blocks.0.shares.out.weight"] = teacher.state_dict()[_share_names(many)[2]]
        inherit_channels(student, weights, _axes)

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        project(cast("SPAN", student), cast("SPAN", teacher), lr_NCHW)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        """As in `Arch`, with the branches' sums, which other programs look at."""
        span = cast("SPAN", net)
        names = _share_names(len(span.blocks))
        rules = {r"lift\.": "conv_1.", r"last\.": "conv_2.", r"up\.0\.": "upsampler.0."}
        rules |= {rf"blocks\.{i}\.block\.": f"block_{i + 1}." for i in range(len(span.blocks))}
        rules |= {"fuse_bias": "conv_cat.bias", **{re.escape(name): "" for name in names}}
        found = rename_keys({**span.state_dict(), **_sums(span)}, rules)
        assert found is not None, "the rules cover all keys"
        found["conv_cat.weight"] = join_fusion(span.state_dict())
        return found if span.mean.any() else {**found, "no_norm": torch.zeros(1)}


def _sums(net: SPAN) -> dict[str, Tensor]:
    """What the branches amount to, under the authors' name for it."""
    found: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, Branched):
            weight, bias = (tensor.detach() for tensor in module.fold_branches())
            found |= {f"{name}.eval_conv.weight": weight, f"{name}.eval_conv.bias": bias}
    return found


def _axes(name: str) -> tuple[Axis | None, ...]:
    """Which channels each dimension of a weight runs over.

    A block multiplies its input channel by channel, so all blocks have one stream. A branch has
    channels of its own inside.
    """
    stream, fused, deep = Axis("stream"), Axis("fused"), Axis("deep")
    if name == "fuse_bias" or "share" in name:
        last = "share_last" in name
        first = Axis(f"{name.partition('.shares')[0]}.block 1")  # of that block, activated
        return (fused, deep if last else first if ".first." in name else stream)
    if name.startswith("up."):
        return (None, fused)
    found = re.fullmatch(r"(.+)\.(?:sk|conv\.(\d))\.\w+", name)
    assert found is not None, "all others are branches"
    layer, part = found.groups()
    ends = _ends(layer)
    if part is None:
        return ends
    inner = [Axis(f"{layer}.{i}") for i in range(2)]
    return ((inner[0], ends[1]), (inner[1], inner[0]), (ends[0], inner[1]))[int(part)]


def _ends(layer: str) -> tuple[Axis | None, Axis | None]:
    """The channels that a branched convolution makes and reads."""
    stream = Axis("stream")
    outside = {"lift": (stream, None), "last": (Axis("deep"), stream)}
    if layer in outside:
        return outside[layer]
    block, _, which = layer.rpartition(".")
    one, two = Axis(f"{block} 1"), Axis(f"{block} 2")
    return {"c1_r": (one, stream), "c2_r": (two, one), "c3_r": (stream, two)}[which]


ARCH = Family()
