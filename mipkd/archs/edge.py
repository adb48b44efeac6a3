"""Edge: a chain of clipped 3x3 convolutions for INT8 and NPUs, a family of ours.

It combines what ECBSR, SESR, ABPN and QuickSRNet showed to work: plain convolutions on the device,
linear branches in training (structural re-parameterisation), and a long skip that repeats each LR
pixel.

All features lie in [0, 1], the range of the image. So one 8-bit scale of 1/255 fits everywhere
without calibration, and head and long skip keep the image exactly. A wider clip would hold no
more: that is the same net with larger weights, with the image in coarser steps. Why the features
carry the image: docs/decisions/0018-edge-image-channels.md.

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
    Axis,
    conv,
    count_indices,
    inherit_channels,
    parse_budget,
    spread_evenly,
    take_blocks,
)
from mipkd.archs.base import Arch, SRNet, StateDict
from mipkd.core.errors import UsageError

_IMAGE = 3  # features of the image itself
_WIDE = 4  # channels inside the wide branch per output channel
_QUIET = 0.01  # of the usual initial size: the last layer's, so that training starts at the skip


@dataclass(frozen=True)
class Hyper:
    """Sizes, and whether each layer is one convolution or its branches."""

    scale: int
    channels: int
    blocks: int
    folded: bool = False


class Branched(nn.Module):
    """A 3x3 convolution trained as a sum of linear branches.

    One branch is direct, one goes through more channels, and one is the identity if the widths
    are equal. Their kernels are summed, not their features: that costs no more than one
    convolution, and the borders are those of the folded net.
    """

    identity: Tensor | None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direct = conv(inputs, outputs)
        self.wide = nn.Conv2d(inputs, _WIDE * outputs, 3, bias=False)
        self.narrow = nn.Conv2d(_WIDE * outputs, outputs, 1, bias=False)
        same = nn.init.dirac_(torch.empty(outputs, inputs, 3, 3)) if inputs == outputs else None
        self.register_buffer("identity", same, persistent=False)

    def fold_branches(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that equals the branches."""
        kind = self.direct.weight.device.type
        # Kernels are summed in float32, under autocast too.
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            product = self.narrow.weight.flatten(1) @ self.wide.weight.flatten(1)
            weight = self.direct.weight + product.view_as(self.direct.weight)
        if self.identity is not None:
            weight = weight + self.identity
        assert self.direct.bias is not None
        return weight, self.direct.bias

    def forward(self, x_NCHW: Tensor) -> Tensor:
        weight, bias = self.fold_branches()
        return F.conv2d(x_NCHW, weight, bias, padding=1)

    @torch.no_grad()
    def set_folded(self, weight: Tensor, bias: Tensor) -> None:
        """Make the branches equal that convolution; only the direct one is changed."""
        self.direct.weight += weight - self.fold_branches()[0]
        cast(Tensor, self.direct.bias).copy_(bias)


class Clipped(nn.Module):
    """A convolution clipped to [0, 1]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = layer

    def forward(self, x_NCHW: Tensor) -> Tensor:
        clipped: Tensor = self.conv(x_NCHW).clamp(0, 1)
        return clipped


class Edge(SRNet):
    """The chain; its first three features are the LR image."""

    anchor: Tensor

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        self.hyper = hyper
        self.scale, self.width = hyper.scale, hyper.channels
        layer = conv if hyper.folded else Branched
        pixels = 3 * hyper.scale**2
        # In branches, only the learned channels: folded, three rows of 0 and 1 come first.
        self.lift = layer(3, hyper.channels - (0 if hyper.folded else 3))
        self.blocks = nn.ModuleList(
            Clipped(layer(hyper.channels, hyper.channels)) for _ in range(hyper.blocks)
        )
        self.up = layer(hyper.channels, pixels)
        # A convolution with weights 0 and 1: many NPUs lack a slice or a repeat.
        repeats = torch.eye(3, hyper.channels).repeat_interleave(hyper.scale**2, 0)
        self.register_buffer("anchor", repeats[..., None, None], persistent=False)
        self.shuffle = nn.PixelShuffle(hyper.scale)
        with torch.no_grad():
            for name, parameter in self.up.named_parameters():
                if name != "wide.weight":
                    parameter.mul_(_QUIET)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        shallow = self.lift(lr_NCHW)
        if not self.hyper.folded:
            shallow = torch.cat([lr_NCHW, shallow], 1)
        clipped: Tensor = shallow.clamp(0, 1)
        return clipped

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        # From the shallow features: decision 0018.
        pixels = F.conv2d(shallow_NCHW, self.anchor) + self.up(features_NCHW)
        # Not clipped in training: a clipped pixel has no gradient.
        image: Tensor = self.shuffle(pixels if self.training else pixels.clamp(0, 1))
        return image

    def to_deployed(self) -> Edge:
        """The net with single convolutions; itself if it is folded already."""
        if self.hyper.folded:
            return self
        with torch.device("meta"):
            net = Edge(replace(self.hyper, folded=True))
        state: dict[str, Tensor] = {}
        for name, module in self.named_modules():
            if isinstance(module, Branched):
                weight, bias = (t.detach().clone() for t in module.fold_branches())
                if name == "lift":
                    weight = torch.cat([nn.init.dirac_(torch.empty_like(weight[:3])), weight])
                    bias = F.pad(bias, (3, 0))
                state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        net.load_state_dict(state, assign=True)
        net.anchor = self.anchor
        return net.train(self.training)

    def set_folded(self, net: Edge) -> None:
        """Make the branches equal the folded `net` of the same sizes."""
        if self.hyper.folded:
            self.load_state_dict(net.state_dict())
            return
        for name, module in self.named_modules():
            if isinstance(module, Branched):
                plain = cast(nn.Conv2d, net.get_submodule(name))
                first = 3 if name == "lift" else 0
                module.set_folded(plain.weight[first:], cast(Tensor, plain.bias)[first:])


_CONVOLUTION = r"(lift|blocks\.\d+\.conv|up)"

_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """Checkpoints of ours, in branches or folded."""

    name, can_project = "edge", True
    Hyper = Hyper
    signs: ClassVar = {
        "branched": ("lift.direct.weight", "blocks.0.conv.direct.weight", "up.direct.weight"),
        "folded": ("lift.weight", "blocks.0.conv.weight", "up.weight"),
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        if not all(re.match(_CONVOLUTION + r"\.", key) for key in state):
            return None
        for layout, keys in self.signs.items():
            if all(key in state for key in keys):
                return layout, dict(state)
        return None

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        folded = layout == "folded"
        pixels, channels = state["up.weight" if folded else "up.direct.weight"].shape[:2]
        scale, blocks = round((pixels / 3) ** 0.5), count_indices(state, "blocks.")
        return Hyper(scale, int(channels), blocks, folded), {}

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=32, blocks=6)

    def make(self, hyper: _Hyper) -> Edge:
        return Edge(hyper)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c32b6`: channels, the image's three among them, and blocks; always in branches."""
        sizes = {"channels": max(8, hyper.channels // 2), "blocks": max(1, hyper.blocks // 2)}
        if budget:
            sizes = parse_budget(self.name, budget, {"c": "channels", "b": "blocks"})
        small = replace(hyper, **{"folded": False, **sizes})  # type: ignore[arg-type]
        if small.channels < 4:
            raise UsageError(
                f"--student: {self.name}:{budget}: three channels are the image itself",
                hint=f"give 4 or more, best a multiple of 16, like {self.name}:c16",
            )
        return small

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        """As in `Arch`; the image's three channels stay."""
        assert isinstance(student, Edge)
        sources = spread_evenly(len(student.blocks), len(teacher.blocks))
        weights = take_blocks(teacher.to_deployed().state_dict(), sources)
        folded = student.to_deployed()
        inherit_channels(folded, weights, _axes)
        student.set_folded(folded)

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        wide, narrow = cast("Edge", teacher.to_deployed()), cast("Edge", student.to_deployed())
        ups = cast("nn.Conv2d", narrow.up), cast("nn.Conv2d", wide.up)
        project_chain(_links(narrow), _links(wide), ups, lr_NCHW, always=_IMAGE)
        cast("Edge", student).set_folded(narrow)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        return dict(net.state_dict())


def _links(net: Edge) -> list[Link]:
    """The convolutions of a folded net but for the last, and the clip."""
    convs = [net.lift, *(block.conv for block in net.blocks)]
    return [Link(cast("nn.Conv2d", one), nn.Hardtanh(0, 1)) for one in convs]


def _axes(name: str) -> tuple[Axis | None, ...]:
    """Which channels each dimension of a folded weight runs over. Blocks have one stream: their
    identity branch starts them near the identity."""
    stream = Axis("stream", always=_IMAGE)
    if name.startswith("lift."):
        return (stream, None)
    return (None, stream) if name.startswith("up.") else (stream, stream)


ARCH = Family()
