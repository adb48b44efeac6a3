"""Range and mean inside the convolutions: the same images, on the 256 levels that images have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mipkd.archs.base import SRNet
from mipkd.core import plugins
from mipkd.export.onnx import export

SPECS = (
    ("edsr", "c8b1"),
    ("rcan", "c8g1b1"),
    ("rlfn", "c8b1"),
    ("imdn", "c8b2"),
    ("lkdn", "c8b2"),
    ("span", "c8b2"),
)


def made(family: str, budget: str, scale: int, **changed: object) -> SRNet:
    torch.manual_seed(0)
    arch = plugins.load("mipkd.archs", family, "ARCH")
    net: SRNet = arch.make(replace(arch.shrink(arch.paper(scale), budget), **changed))
    return net.eval()


def difference(net: SRNet) -> float:
    lr = torch.rand(1, 3, 19, 23)
    lr[..., :3] = 0.0  # at the border black is not the mean's colour
    with torch.no_grad():
        sr = net(lr)
        return float((sr - net.to_exportable()(lr)).abs().max() / sr.abs().max().clamp(min=1))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("family", "budget"), SPECS)
def test_it_gives_the_same_images(family: str, budget: str, scale: int) -> None:
    assert difference(made(family, budget, scale)) < 1e-6


@pytest.mark.parametrize("mean", [None, (0.1, 0.5, 0.9)])
@pytest.mark.parametrize("direct", [True, False])
def test_whatever_the_mean_and_the_end(direct: bool, mean: tuple[float, ...] | None) -> None:
    for image_range in (1.0, 255.0):
        net = made("edsr", "c8b1", 4, direct=direct, mean=mean, image_range=image_range)
        assert difference(net) < 1e-6


@pytest.mark.parametrize(("family", "budget"), SPECS)
def test_no_arithmetic_is_left_before_the_first_and_after_the_last_convolution(
    family: str, budget: str, tmp_path: Path
) -> None:
    import onnx

    net = made(family, budget, 4)
    graph = export(net, out=tmp_path, metadata={}, role="student", family=family)
    nodes = [n for n in onnx.load(graph.file).graph.node if n.op_type != "Constant"]
    first = [n.op_type for n in nodes].index("Conv")
    assert not {n.op_type for n in nodes[:first]} & {"Add", "Sub", "Mul", "Div"}
    assert nodes[-1].op_type in ("Conv", "DepthToSpace")


def test_its_body_is_the_nets_and_its_ends_are_not() -> None:
    net = made("edsr", "c8b1", 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    folded = net.to_exportable()
    assert folded.blocks is net.blocks
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
