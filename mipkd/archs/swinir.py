"""SwinIR (Liang et al., 2021): residual groups of shifted-window attention.

Shapes: N batch, C channels, H W low-res size, T tokens of a window. Images: float32 in [0, 1].
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs._parts import (
    DIV2K_MEAN,
    Axis,
    conv,
    count_indices,
    inherit_channels,
    make_upsampler,
    parse_budget,
    read_upsampler,
    rename_keys,
    spread_evenly,
    take_blocks,
)
from mipkd.archs._shift import list_ranges
from mipkd.archs._swinir_projection import project
from mipkd.archs.base import Arch, SRNet, StateDict
from mipkd.core.errors import UnsupportedError, UsageError

_FEATURES = 64  # channels between the body and the pixel shuffles


@dataclass(frozen=True)
class Hyper:
    """Sizes; image range and mean are by default those of the authors."""

    scale: int
    channels: int
    groups: int
    layers: int = 6  # in each group
    heads: int = 6
    window: int = 8
    ratio: int = 2  # of the MLP
    direct: bool = False
    image_range: float = 1.0
    mean: tuple[float, float, float] | None = DIV2K_MEAN


class Attention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position."""

    positions: Tensor

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        self.heads, side = hyper.heads, hyper.window
        self.qkv = nn.Linear(hyper.channels, 3 * hyper.channels)
        self.proj = nn.Linear(hyper.channels, hyper.channels)
        table = torch.zeros((2 * side - 1) ** 2, hyper.heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        row, column = (
            i.flatten() for i in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij")
        )
        down = row[:, None] - row[None] + side - 1
        right = column[:, None] - column[None] + side - 1
        self.register_buffer(
            "positions", (down * (2 * side - 1) + right).flatten(), persistent=False
        )

    def forward(self, windows_WTC: Tensor, mask_WTT: Tensor | None) -> Tensor:
        """Attended tokens; `mask` is added to the scores of one image's windows."""
        count, tokens, channels = windows_WTC.shape
        qkv = self.qkv(windows_WTC).reshape(count, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (channels // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.positions].view(tokens, tokens, self.heads)
        scores = scores + bias.permute(2, 0, 1)
        if mask_WTT is not None:
            images = count // mask_WTT.shape[0]
            scores = scores + mask_WTT.repeat(images, 1, 1)[:, None]
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count, tokens, channels)
        attended: Tensor = self.proj(mixed)
        return attended


class Layer(nn.Module):
    """A transformer layer: attention and an MLP, each after a layer norm and added to its input."""

    def __init__(self, hyper: Hyper, shift: int) -> None:
        super().__init__()
        self.window, self.shift = hyper.window, shift
        self.norm1 = nn.LayerNorm(hyper.channels)
        self.attn = Attention(hyper)
        self.norm2 = nn.LayerNorm(hyper.channels)
        inside = hyper.channels * hyper.ratio
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(hyper.channels, inside), "fc2": nn.Linear(inside, hyper.channels)}
        )

    def forward(self, x_NHWC: Tensor) -> Tensor:
        x = x_NHWC + self.attend(x_NHWC)
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x)))
        out: Tensor = x + self.mlp["fc2"](hidden)
        return out

    def attend(self, x_NHWC: Tensor) -> Tensor:
        """The attention branch, which is added to the features."""
        count, height, width, channels = x_NHWC.shape
        side = self.window
        rows, columns = height // side, width // side
        x = self.norm1(x_NHWC)
        mask = None
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
            mask = self.mask(height, width).to(x)
        # Images and rows of windows share a dimension: Core ML allows at most five.
        windows = x.view(count * rows, side, columns, side, channels).transpose(1, 2)
        attended = self.attn(windows.reshape(-1, side * side, channels), mask)
        x = attended.view(count * rows, columns, side, side, channels).transpose(1, 2)
        x = x.reshape(count, height, width, channels)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def mask(self, height: int, width: int) -> Tensor:
        """-100 between tokens that only the cyclic shift made neighbours; computed here and not
        stored, so that any H and W works."""
        side = self.window

        def regions(length: int) -> Tensor:
            at = torch.arange(length, device=self.norm1.weight.device)
            return (at >= length - side).int() + (at >= length - self.shift).int()

        region = regions(height)[:, None] * 3 + regions(width)[None]
        tokens = region.view(height // side, side, width // side, side).transpose(1, 2)
        tokens = tokens.reshape(-1, side * side)
        apart: Tensor = tokens[:, :, None] != tokens[:, None, :]
        return apart.float() * -100.0


class Group(nn.Module):
    """A residual Swin transformer block (RSTB): layers with and without shift, a convolution, and
    the input added."""

    def __init__(self, hyper: Hyper, *, first: bool) -> None:
        super().__init__()
        self.patch_norm = nn.LayerNorm(hyper.channels) if first else nn.Identity()
        shifts = [0 if i % 2 == 0 else hyper.window // 2 for i in range(hyper.layers)]
        self.layers = nn.Sequential(*[Layer(hyper, shift) for shift in shifts])
        self.conv = conv(hyper.channels, hyper.channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NHWC = self.patch_norm(x_NCHW.permute(0, 2, 3, 1))
        y_NHWC = self.layers(x_NHWC)
        out: Tensor = self.conv(y_NHWC.permute(0, 3, 1, 2)) + x_NHWC.permute(0, 3, 1, 2)
        return out


class SwinIR(SRNet):
    """SwinIR for classical (64 features before the shuffles) and lightweight (direct) SR."""

    mean: Tensor

    def __init__(self, hyper: Hyper) -> None:
        super().__init__()
        self.scale, self.width, self.multiple = hyper.scale, hyper.channels, hyper.window
        self.image_range = hyper.image_range
        shift = torch.tensor(hyper.mean or (0.0, 0.0, 0.0)).view(1, 3, 1, 1)
        self.register_buffer("mean", shift, persistent=False)
        self.lift = conv(3, hyper.channels)
        self.blocks = nn.ModuleList([Group(hyper, first=i == 0) for i in range(hyper.groups)])
        self.norm = nn.LayerNorm(hyper.channels)
        self.after = conv(hyper.channels, hyper.channels)
        features = hyper.channels if hyper.direct else _FEATURES
        narrow = nn.Sequential(conv(hyper.channels, features), nn.LeakyReLU())
        self.before = nn.Identity() if hyper.direct else narrow
        self.up = make_upsampler(features, hyper.scale, direct=hyper.direct)
        self.last = nn.Identity() if hyper.direct else conv(features, 3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)  # usual in transformers
                nn.init.zeros_(module.bias)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        shallow: Tensor = self.lift((lr_NCHW - self.mean) * self.image_range)
        return shallow

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        normed = self.norm(features_NCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        deep = self.after(normed) + shallow_NCHW
        pixels: Tensor = self.last(self.up(self.before(deep))) / self.image_range + self.mean
        return pixels


_ORIGINAL = {
    r".*(attn_mask|relative_position_index)$": "",
    r"conv_first\.": "lift.",
    r"patch_embed\.norm\.": "blocks.0.patch_norm.",
    r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.": r"blocks.\1.layers.\2.",
    r"layers\.(\d+)\.conv\.": r"blocks.\1.conv.",
    r"norm\.": "norm.",
    r"conv_after_body\.": "after.",
    r"conv_before_upsample\.0\.": "before.0.",
    r"upsample\.(\d+)\.": r"up.\1.",
    r"conv_last\.": "last.",
}
_BACK = {
    r"lift\.": "conv_first.",
    r"blocks\.0\.patch_norm\.": "patch_embed.norm.",
    r"blocks\.(\d+)\.layers\.(\d+)\.": r"layers.\1.residual_group.blocks.\2.",
    r"blocks\.(\d+)\.conv\.": r"layers.\1.conv.",
    r"norm\.": "norm.",
    r"after\.": "conv_after_body.",
    r"before\.0\.": "conv_before_upsample.0.",
    r"up\.": "upsample.",
    r"last\.": "conv_last.",
}

_Hyper = Hyper  # for annotations inside Family, which has a field of that name


class Family(Arch):
    """SwinIR checkpoints; the authors', BasicSR's and traiNNer-redux's share key names."""

    name, can_project = "swinir", True
    Hyper = Hyper
    signs: ClassVar = {
        "original": (
            "conv_first.weight",
            "patch_embed.norm.weight",
            "layers.0.residual_group.blocks.0.attn.relative_position_bias_table",
        )
    }

    def canonical(self, state: StateDict) -> tuple[str, dict[str, Tensor]] | None:
        if not all(key in state for key in self.signs["original"]):
            return None
        if "layers.0.conv.0.weight" in state:
            raise UnsupportedError(
                "swinir: groups that end in three convolutions (SwinIR-L) are not supported",
                hint="known: groups that end in one convolution",
            )
        if any(key.startswith("conv_up") for key in state) or "upsample.0.weight" not in state:
            raise UnsupportedError(
                "swinir: the tails of denoising and of real-world SR are not supported",
                hint="known: pixel shuffle, direct pixel shuffle",
            )
        found = rename_keys(state, _ORIGINAL)
        return ("original", found) if found else None

    def read(self, state: StateDict, layout: str) -> tuple[_Hyper, dict[str, str]]:
        channels = int(state["lift.weight"].shape[0])
        features = state["before.0.weight"].shape[0] if "before.0.weight" in state else channels
        scale, direct = read_upsampler(state, int(features))
        positions, heads = state["blocks.0.layers.0.attn.relative_position_bias_table"].shape
        hyper = Hyper(
            scale=scale,
            channels=channels,
            groups=count_indices(state, "blocks."),
            layers=count_indices(state, "blocks.0.layers."),
            heads=int(heads),
            window=(round(positions**0.5) + 1) // 2,
            ratio=int(state["blocks.0.layers.0.mlp.fc1.weight"].shape[0]) // channels,
            direct=direct,
        )
        how = f"assumed from layout {layout}: SwinIR's own"
        return hyper, {"image_range": how, "mean": how}

    def unsettled(self, hyper: _Hyper) -> list[_Hyper]:
        return list_ranges(hyper)

    def make(self, hyper: _Hyper) -> SwinIR:
        return SwinIR(hyper)

    def paper(self, scale: int) -> _Hyper:
        return Hyper(scale, channels=60, groups=4)

    def shrink(self, hyper: _Hyper, budget: str) -> _Hyper:
        """`c60r4`: channels (a multiple of the heads) and groups (RSTBs)."""
        if budget:
            sizes = parse_budget(self.name, budget, {"c": "channels", "r": "groups"})
        elif (hyper.channels, hyper.groups) == (180, 6):
            sizes = {"channels": 60, "groups": 4}
        else:
            width = hyper.channels // 2 // hyper.heads * hyper.heads
            sizes = {"channels": max(hyper.heads, width), "groups": max(1, hyper.groups // 2)}
        small = replace(hyper, **sizes)  # type: ignore[arg-type]
        if small.channels % small.heads:
            raise UsageError(
                f"--student: {small.channels} channels cannot be shared by {small.heads} heads",
                hint=f"give a multiple of {small.heads}, like {self.name}:c{10 * small.heads}",
            )
        return small

    def inherit(self, student: SRNet, teacher: SRNet) -> None:
        """As in `Arch`; of each attention head the strongest channels."""
        state = teacher.state_dict()
        weights = take_blocks(state, spread_evenly(len(student.blocks), len(teacher.blocks)))
        weights |= {key: value for key, value in state.items() if "patch_norm" in key}
        attention = cast("Attention", teacher.get_submodule("blocks.0.layers.0.attn"))
        direct = isinstance(student.before, nn.Identity)
        inherit_channels(student, weights, lambda name: _axes(name, attention.heads, direct=direct))

    def project(self, student: SRNet, teacher: SRNet, lr_NCHW: Tensor) -> None:
        project(cast("SwinIR", student), cast("SwinIR", teacher), lr_NCHW)

    def original(self, net: SRNet) -> dict[str, Tensor]:
        """As in `Arch`, with the buffers by which spandrel knows the window."""
        found = rename_keys({**net.state_dict(), **_buffers(cast("SwinIR", net))}, _BACK)
        assert found is not None, "the rules cover all keys"
        return found


def _buffers(net: SwinIR) -> dict[str, Tensor]:
    """What the authors' program stores beside the weights; masks are of an image of 2x2 windows."""
    found = {}
    for name, layer in net.named_modules():
        if isinstance(layer, Layer):
            side = layer.window
            index = layer.attn.positions.view(side**2, side**2)
            found[f"{name}.attn.relative_position_index"] = index
            if layer.shift:
                found[f"{name}.attn_mask"] = layer.mask(2 * side, 2 * side)
    return found


def _axes(name: str, heads: int, *, direct: bool) -> tuple[Axis | None, ...]:
    """Which channels each dimension of a weight runs over."""
    stream = Axis("stream")
    if match := re.match(r"blocks\.(\d+\.layers\.\d+)\.(.*)", name):
        value, hidden = Axis(f"heads {match[1]}", parts=heads), Axis(f"hidden {match[1]}")
        axes: dict[str, tuple[Axis | None, ...]] = {
            "attn.qkv": (replace(value, stacks=3), stream),
            "attn.proj": (stream, value),
            "mlp.fc1": (hidden, stream),
            "mlp.fc2": (stream, hidden),
            "attn.relative_position_bias_table": (None, None),
        }
        return next((a for k, a in axes.items() if match[2].startswith(k)), (stream,))
    if name.startswith("lift."):
        return (stream, None)
    if name.startswith(("before.", "up.", "last.")):
        return (None, stream) if direct or name.startswith("before.") else (None, None)
    return (stream, stream)


ARCH = Family()
