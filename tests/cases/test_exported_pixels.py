"""Exported graphs give their nets' pixels: all families, scales and odd sizes, at most 1 level."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from mipkd.archs._branches import merge_branches
from mipkd.archs._hooked import BlockSequence, HookedNet
from mipkd.archs.base import SRNet
from mipkd.core import plugins
from mipkd.distill.teacher import TeacherOptions, identify
from mipkd.export.onnx import edit_graph, export, export_traced
from mipkd.export.parity import levels_apart
from mipkd.export.pixel_shuffle import replace_pixel_shuffle

NETS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "compact": ("compact", "c8b2", {}),
    "edge": ("edge", "c8b2", {}),
    "edsr as its authors store it": ("edsr", "c8b2", {}),
    "edsr as BasicSR stores it": ("edsr", "c8b2", {"direct": True}),
    "rcan": ("rcan", "c16g1b1", {}),
    "rlfn": ("rlfn", "c8b2", {}),
    "span": ("span", "c8b2", {}),
    "swinir": ("swinir", "c12r1", {"layers": 2}),
}


def made(name: str, scale: int) -> tuple[SRNet, str]:
    family, budget, others = NETS[name]
    arch = plugins.load("mipkd.archs", family, "ARCH")
    torch.manual_seed(scale)
    net: SRNet = arch.make(replace(arch.shrink(arch.paper(scale), budget), **others))
    return net.eval(), family


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in NETS for scale in ((2, 3, 4) if name != "swinir" else (3,))],
)
def test_a_graph_is_within_one_level_of_its_net(name: str, scale: int, tmp_path: Path) -> None:
    net, family = made(name, scale)
    graph = export(net, out=tmp_path, metadata={}, role="student", family=family)
    assert levels_apart(net, graph) <= 1
    assert levels_apart(net, edit_graph(graph, replace_pixel_shuffle)) <= 1


class Rep(nn.Module):
    """A block as SPAN has it: its branches are merged into one kernel whenever it runs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(channels, channels, 1)
        self.wide = nn.Conv2d(channels, 2 * channels, 1)
        self.spatial = nn.Conv2d(2 * channels, channels, 3)
        self.eval_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def update_params(self) -> None:
        kernel = torch.einsum("omyx,mi->oiyx", self.spatial.weight, self.wide.weight[..., 0, 0])
        bias = self.spatial.bias + self.spatial.weight.sum((2, 3)) @ self.wide.bias
        self.eval_conv.weight.data = kernel.detach().clone()
        self.eval_conv.weight.data[..., 1, 1] += self.skip.weight.detach()[..., 0, 0]
        self.eval_conv.bias.data = (bias + self.skip.bias).detach()

    def forward(self, x: Tensor) -> Tensor:
        self.update_params()
        return self.eval_conv(x)


class Gated(Rep):
    """It has such a method too, and is no convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Upscaler(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(*blocks)
        self.tail = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, lr: Tensor) -> Tensor:
        return self.tail(self.body(self.head(lr)))  # type: ignore[no-any-return]


def upscaler(*kinds: type[Rep]) -> HookedNet:
    torch.manual_seed(0)
    net = Upscaler(*(kind(8) for kind in kinds))
    return HookedNet(net, BlockSequence(), scale=2).eval()


def test_branches_become_the_convolution_that_gives_the_same() -> None:
    net = upscaler(Rep, Gated, Rep)
    folded = net.to_deployed()
    body = folded.net.body  # type: ignore[union-attr, operator]
    assert [type(one) for one in body] == [nn.Conv2d, Gated, nn.Conv2d]  # type: ignore[union-attr]
    assert body[0].kernel_size == (3, 3)  # type: ignore[index, union-attr]
    assert isinstance(net.net.body[0], Rep)  # type: ignore[index]
    lr = torch.rand(1, 3, 13, 9)
    with torch.no_grad():
        assert torch.allclose(net(lr), folded(lr), atol=1e-6)
    assert merge_branches(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1))) == 0


@pytest.mark.parametrize("exporter", [export, export_traced])
def test_either_exporter_takes_a_net_with_merged_branches(exporter: Any, tmp_path: Path) -> None:
    net = upscaler(Rep, Rep)
    graph = exporter(net, out=tmp_path, metadata={"licence": "MIT"}, role="student", family="x")
    assert levels_apart(net, graph) == 0
    facts = {p.key: p.value for p in onnx.load(graph.file).metadata_props}
    assert (facts["scale"], facts["licence"], facts["range"]) == ("2", "MIT", "0..1")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Compact.Compact", "ESRGAN.ESRGAN", "SPAN.SPAN"])
def test_foreign_families_are_within_one_level(spandrel: Any, name: str, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from benchmarks.spandrel_nets import write_checkpoint
    from benchmarks.spandrel_teachers import ALLOWED, count_levels

    file = write_checkpoint(name, 2, tmp_path / "net.pth")
    model, _ = identify(file, role="student", options=TeacherOptions())
    assert count_levels(model, tmp_path) <= ALLOWED
