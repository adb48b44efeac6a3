"""Nets whose last layers read the features of all blocks: IMDN and LKDN.

Their authors concatenate the blocks' features and mix them by a 1x1 convolution. Here each block
holds its own share of that convolution, and hands on the sum of the shares so far beside its
features. So the blocks can be run one by one, as in any other net; what runs on a device is the
authors' form.

Shapes: N batch, C channels, H W low-res size, B blocks. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from mipkd.archs._parts import Axes, inherit_tensors, make_upsampler, spread_evenly, take_blocks
from mipkd.archs.base import SRNet, StateDict

# Which dimension of a weight is a row of parts, and their shares of it; None for most.
Cuts = Callable[[str], tuple[int, tuple[int, ...]] | None]


class Step(nn.Module):
    """A block and its share of the fusion, on features and the sum of shares so far (2C)."""

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.block = block
        self.share = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, stream_NCHW: Tensor) -> Tensor:
        features, total = stream_NCHW.chunk(2, 1)
        features = self.block(features)
        return torch.cat([features, total + self.share(features)], 1)


class TrunkNet(SRNet):
    """Head, blocks, fusion, a last layer and the upsampler; features are 2C channels wide."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        channels: int,
        scale: int,
        image_range: float,
        lift: nn.Module,
        activation: nn.Module,
        last: nn.Module,
    ) -> None:
        super().__init__()
        self.scale, self.width, self.image_range = scale, 2 * channels, image_range
        self.lift, self.activation, self.last = lift, activation, last
        self.blocks = nn.ModuleList(Step(block, channels) for block in blocks)
        self.fuse_bias = nn.Parameter(torch.zeros(channels))
        self.up = make_upsampler(channels, scale, direct=True)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        shallow = self.lift(lr_NCHW * self.image_range)
        return torch.cat([shallow, torch.zeros_like(shallow)], 1)

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        shallow, total = shallow_NCHW.chunk(2, 1)[0], features_NCHW.chunk(2, 1)[1]
        deep = self.last(self.activation(total + self.fuse_bias[:, None, None]))
        image: Tensor = self.up(deep + shallow) / self.image_range
        return image

    def to_deployed(self) -> SRNet:
        return JoinedNet(self)

    def to_exportable(self) -> SRNet:
        return JoinedNet(self, fold_range=True)


class JoinedNet(SRNet):
    """A `TrunkNet` as its authors wrote it: one convolution over the features of all blocks."""

    in_parts = False

    def __init__(self, net: TrunkNet, *, fold_range: bool = False) -> None:
        super().__init__()
        steps = [step for step in net.blocks if isinstance(step, Step)]
        channels = len(net.fuse_bias)
        self.scale, self.width, self.image_range = net.scale, channels, net.image_range
        self.lift: nn.Module = net.lift
        self.up: nn.Module = net.up
        self.activation, self.last = net.activation, net.last
        self.blocks = nn.ModuleList(step.block for step in steps)
        weight = torch.cat([step.share.weight.detach() for step in steps], 1)
        with torch.device(weight.device):
            self.fuse = nn.Conv2d(channels * len(steps), channels, 1)
        fused = {"weight": weight, "bias": net.fuse_bias.detach()}
        self.fuse.load_state_dict(fused, assign=True)
        if fold_range and self.image_range != 1:
            self.lift = _scale_first(net.lift, self.image_range)
            self.up = _scale_first(net.up, 1 / self.image_range, bias=True)
            self.image_range = 1.0
        self.train(net.training)

    def forward_with_taps(
        self, lr_NCHW: Tensor, positions: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        scaled = self.image_range != 1
        shallow = features = self.lift(lr_NCHW * self.image_range if scaled else lr_NCHW)
        found: list[Tensor] = []
        for block in self.blocks:
            features = block(features)
            found.append(features)
        deep = self.last(self.activation(self.fuse(torch.cat(found, 1))))
        image: Tensor = self.up(deep + shallow)
        return image / self.image_range if scaled else image, [found[p] for p in positions]


def _scale_first(layers: nn.Module, factor: float, *, bias: bool = False) -> nn.Module:
    """A copy whose first convolution gives `factor` times as much; its bias only where asked."""
    copy = deepcopy(layers)
    first = next(one for one in copy.modules() if isinstance(one, nn.Conv2d))
    with torch.no_grad():
        first.weight.mul_(factor)
        if bias and first.bias is not None:
            first.bias.mul_(factor)
    return copy


def split_fusion(state: StateDict, weight: str) -> dict[str, Tensor]:
    """A state dict with the fusion's weight (C, B*C, 1, 1) as a share of each block."""
    kept = {key: value for key, value in state.items() if key != weight}
    for index, share in enumerate(torch.chunk(state[weight], _count(state[weight]), 1)):
        kept[f"blocks.{index}.share.weight"] = share.contiguous()
    return kept


def _count(weight: Tensor) -> int:
    """How many blocks a fusion's weight reads."""
    return weight.shape[1] // weight.shape[0]


def join_fusion(net: SRNet, weight: str) -> dict[str, Tensor]:
    """A net's state dict with the shares as one weight under that name."""
    state = net.state_dict()
    shares = [state.pop(f"blocks.{index}.share.weight") for index in range(len(net.blocks))]
    return {**state, weight: torch.cat(shares, 1)}


def inherit_trunk(student: SRNet, teacher: SRNet, axes: Axes, cuts: Cuts) -> None:
    """Evenly spaced blocks of a teacher and its strongest channels, by parts of its weights."""
    sources = spread_evenly(len(student.blocks), len(teacher.blocks))
    weights = take_blocks(teacher.state_dict(), sources)
    mine = _cut(dict(student.named_parameters()), cuts)
    inherit_tensors(mine, _cut(weights, cuts), axes)


@torch.no_grad()
def _cut(tensors: Mapping[str, Tensor], cuts: Cuts) -> dict[str, Tensor]:
    """The tensors, those that are rows of parts as views of each part: `name#0`, `name#1`."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if (cut := cuts(name)) is None:
            found[name] = value
            continue
        dim, shares = cut
        sizes = [value.shape[dim] * share // sum(shares) for share in shares]
        parts = torch.split_with_sizes(value, sizes, dim)
        found |= {f"{name}#{index}": part for index, part in enumerate(parts)}
    return found


def count_blocks_from_0(state: StateDict) -> dict[str, Tensor]:
    """Keys `blocks.N.` that count from 1 as they count from 0."""
    return {
        re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) - 1}", key): value
        for key, value in state.items()
    }
