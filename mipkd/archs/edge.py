"""Edge: a chain of clipped 3x3 convolutions for INT8 and NPUs; ours, trained in branches.

After what ECBSR, SESR, ABPN and QuickSRNet showed to work: plain convolutions on the device,
linear branches in training, and a long skip that repeats each LR pixel.

All features lie in [0, 1], where the image lies. So an 8-bit scale of 1/255 fits throughout
without calibration, and the image crosses the head and the long skip in steps of its own. A wider
clip would hold no more: it is the same net with larger weights, but the image in coarser steps.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._parts import Axis, conv, count_of, cut, evenly, parse_budget
from mipkd.archs.base import SRNet, StateDict
from mipkd.core.errors import UsageError

_WIDE = 4  # channels inside the wide branch, for each that comes out
_QUIET = 0.01  # of the usual size: the last weights at first, so that training starts at the skip


@dataclass(frozen=True)
class Hyper:
    """Sizes, and whether each layer is one convolution or its branches."""

    scale: int
    channels: int
    blocks: int
    folded: bool = False


class Branched(nn.Module):
    """A 3x3 convolution trained as a sum of linear branches.

    One branch is direct, one goes through more channels, and one is the input where the widths
    allow it. They are summed as kernels, not as features: it costs no more than one convolution
    and the borders cannot differ from the folded net's.
    """

    identity: Tensor | None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direct = conv(inputs, outputs)
        self.wide = nn.Conv2d(inputs, _WIDE * outputs, 3, bias=False)
        self.narrow = nn.Conv2d(_WIDE * outputs, outputs, 1, bias=False)
        same = nn.init.dirac_(torch.empty(outputs, inputs, 3, 3)) if inputs == outputs else None
        self.register_buffer("identity", same, persistent=False)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that this is."""
        kind = self.direct.weight.device.type
        # Kernels are summed in float32, also where features are not.
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            product = self.narrow.weight.flatten(1) @ self.wide.weight.flatten(1)
            weight = self.direct.weight + product.view_as(self.direct.weight)
        if self.identity is not None:
            weight = weight + self.identity
        assert self.direct.bias is not None
        return weight, self.direct.bias

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features of the same height and width."""
        weight, bias = self.plain()
        return F.conv2d(x_NCHW, weight, bias, padding=1)

    @torch.no_grad()
    def become(self, weight: Tensor, bias: Tensor) -> None:
        """Be that convolution, by a change of the direct branch alone."""
        self.direct.weight += weight - self.plain()[0]
        cast(Tensor, self.direct.bias).copy_(bias)


class Clipped(nn.Module):
    """A convolution clipped to [0, 1]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = layer

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Features of the same shape."""
        clipped: Tensor = self.conv(x_NCHW).clamp(0, 1)
        return clipped


class Edge(SRNet):
    """The chain. Its first three features are the LR image, for the long skip."""

    anchor: Tensor

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        self.hyper = hyper
        self.scale, self.width = hyper.scale, hyper.channels
        layer = conv if hyper.folded else Branched
        pixels = 3 * hyper.scale**2
        # In branches, only what is learned: the folded one begins with three rows of 0 and 1.
        self.lift = layer(3, hyper.channels - (0 if hyper.folded else 3))
        self.blocks = nn.ModuleList(
            Clipped(layer(hyper.channels, hyper.channels)) for _ in range(hyper.blocks)
        )
        self.up = layer(hyper.channels, pixels)
        # A convolution with weights 0 and 1: a slice and a repeat are rare on NPUs.
        repeats = torch.eye(3, hyper.channels).repeat_interleave(hyper.scale**2, 0)
        self.register_buffer("anchor", repeats[..., None, None], persistent=False)
        self.shuffle = nn.PixelShuffle(hyper.scale)
        with torch.no_grad():
            for name, parameter in self.up.named_parameters():
                if name != "wide.weight":
                    parameter.mul_(_QUIET)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        """Shallow features (N, width, H, W), the first three the image itself."""
        shallow = self.lift(lr_NCHW)
        if not self.hyper.folded:
            shallow = torch.cat([lr_NCHW, shallow], 1)
        clipped: Tensor = shallow.clamp(0, 1)
        return clipped

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor) -> Tensor:
        """The repeated LR pixels plus what the chain adds to each."""
        pixels = F.conv2d(shallow_NCHW, self.anchor) + self.up(features_NCHW)
        # Not in training: a clipped pixel has no gradient.
        image: Tensor = self.shuffle(pixels if self.training else pixels.clamp(0, 1))
        return image

    def deployed(self) -> Edge:
        """The net of single convolutions; itself if it is that already."""
        if self.hyper.folded:
            return self
        with torch.device("meta"):
            net = Edge(replace(self.hyper, folded=True))
        state: dict[str, Tensor] = {}
        for name, module in self.named_modules():
            if isinstance(module, Branched):
                weight, bias = (t.detach().clone() for t in module.plain())
                if name == "lift":
                    weight = torch.cat([nn.init.dirac_(torch.empty_like(weight[:3])), weight])
                    bias = F.pad(bias, (3, 0))
                state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        net.load_state_dict(state, assign=True)
        net.anchor = self.anchor
        return net.train(self.training)

    def become(self, net: Edge) -> None:
        """Be the folded `net`, of the same sizes."""
        if self.hyper.folded:
            self.load_state_dict(net.state_dict())
            return
        for name, module in self.named_modules():
            if isinstance(module, Branched):
                plain = cast(nn.Conv2d, net.get_submodule(name))
                first = 3 if name == "lift" else 0
                module.become(plain.weight[first:], cast(Tensor, plain.bias)[first:])


_CONVOLUTION = r"(lift|blocks\.\d+\.conv|up)"

_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family:
    """Checkpoints of ours, in branches or folded."""

    name = "edge"
    Hyper = Hyper
    signs: Mapping[str, tuple[str, ...]] = {
        "branched": ("lift.direct.weight", "blocks.0.conv.direct.weight", "up.direct.weight"),
        "folded": ("lift.weight", "blocks.0.conv.weight", "up.weight"),
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        """The layout's name and the weights, whose key names are ours."""
        if not all(re.match(_CONVOLUTION + r"\.", key) for key in state):
            return None
        for layout, keys in self.signs.items():
            if all(key in state for key in keys):
                return layout, dict(state)
        return None

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        """Sizes from shapes; there is nothing that they cannot tell."""
        folded = layout == "folded"
        pixels, channels = state["up.weight" if folded else "up.direct.weight"].shape[:2]
        scale, blocks = round((pixels / 3) ** 0.5), count_of(state, "blocks.")
        return Hyper(scale, int(channels), blocks, folded), {}

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        """Nothing."""
        return [hyper]

    def paper(self, scale: int) -> _Hyper:
        """32 channels and 6 blocks: no paper has this family."""
        return Hyper(scale, channels=32, blocks=6)

    def make(self, hyper: _Hyper) -> Edge:
        """A net with random weights that begins near to repeating each LR pixel."""
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
        """Evenly spaced blocks, the image's and the strongest channels."""
        assert isinstance(student, Edge)
        picked = evenly(len(student.blocks), len(teacher.blocks))
        weights: dict[str, Tensor] = {}
        for key, value in teacher.deployed().state_dict().items():
            match = re.match(r"blocks\.(\d+)\.(.*)", key)
            places = [i for i, source in enumerate(picked) if match and source == int(match[1])]
            weights |= {f"blocks.{i}.{match[2]}": value for i in places} if match else {key: value}
        plain = student.deployed()
        cut(plain, weights, _axes)
        student.become(plain)

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        """Every layer by regression."""
        from mipkd.archs._edge_projection import project

        assert isinstance(student, Edge)
        assert isinstance(teacher, Edge)
        project(student, teacher, lr_NCHW)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        """Our key names."""
        return dict(net.state_dict())


def _axes(name: str) -> tuple[Axis | None, ...]:
    """Which channels each dimension of a folded weight runs over: blocks start as identities."""
    stream = Axis("stream", always=3)
    if name.startswith("lift."):
        return (stream, None)
    return (None, stream) if name.startswith("up.") else (stream, stream)


ARCH = Family()
