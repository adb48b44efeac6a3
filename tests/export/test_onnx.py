"""Exported graphs compute what the torch nets do, at any size, and carry what a user needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from calibration.sensitive_layers import sensitive_layers_in_file
from mipkd.archs._hooked import BlockSequence, HookedNet
from mipkd.archs.base import Arch, SRNet
from mipkd.core import plugins
from mipkd.core.errors import StageError
from mipkd.export.onnx import export
from mipkd.export.parity import check_parity, levels_apart

# One group of SwinIR holds a plain and a shifted window layer.
SMALL = {
    "edge": ("c8b2", {}),
    "edsr": ("c8b2", {}),
    "rcan": ("c16g1b1", {}),
    "rlfn": ("c8b2", {}),
    "swinir": ("c12r1", {"layers": 2}),
}


def made(name: str, scale: int = 2) -> SRNet:
    arch: Arch = plugins.load("mipkd.archs", name, "ARCH")
    budget, others = SMALL[name]
    torch.manual_seed(0)
    hyper = replace(arch.shrink(arch.paper(scale), budget), **others)
    return arch.make(hyper).eval()


@pytest.mark.parametrize("name", SMALL)
def test_the_graph_equals_torch_on_noise_of_any_size(name: str, tmp_path: Path) -> None:
    net = made(name)
    graph = export(net, out=tmp_path, metadata={}, role="student", family=name)
    photo = np.random.default_rng(1).integers(0, 256, (45, 27, 3), dtype=np.uint8)
    assert check_parity(net, graph, [photo], bound=1e-5) < 1e-5
    assert (graph.scale, graph.multiple, graph.opset) == (2, net.multiple, 20)
    found = sensitive_layers_in_file(graph.file)
    assert (len(found.head), len(found.tail)) == (1, 2 if name == "edge" else 1)
    assert found.adds
    assert found.attention == (name == "swinir")


def test_a_net_trained_in_branches_is_exported_as_plain_convolutions(tmp_path: Path) -> None:
    graph = export(made("edge"), out=tmp_path, metadata={}, role="student", family="edge")
    kinds = [node.op_type for node in onnx.load(graph.file).graph.node]
    assert set(kinds) == {"Conv", "Clip", "Add", "DepthToSpace"}
    assert kinds.count("Conv") == 2 + 3  # the blocks'; the head's, the tail's, the long skip's


def test_the_graph_says_what_it_takes_and_where_it_comes_from(tmp_path: Path) -> None:
    metadata = {"teacher_sha256": "ab12", "licence": "CC0"}
    graph = export(made("edsr", 3), out=tmp_path, metadata=metadata, role="student", family="edsr")
    model = onnx.load(graph.file)
    facts = {p.key: p.value for p in model.metadata_props}
    assert facts == {
        "scale": "3",
        "colour": "RGB",
        "range": "0..1",
        "border": "3",
        "multiple": "1",
        "producer": "mipkd-pipeline",
        "family": "edsr",
        "teacher_sha256": "ab12",
        "licence": "CC0",
    }
    session = onnxruntime.InferenceSession(str(graph.file), providers=["CPUExecutionProvider"])
    (lr,), (sr,) = session.get_inputs(), session.get_outputs()
    assert (lr.name, lr.type, sr.name) == ("lr", "tensor(float)", "sr")
    assert lr.shape[:2] == [1, 3]
    assert all(isinstance(side, str) for side in lr.shape[2:])
    assert {o.domain: o.version for o in model.opset_import} == {"": 20}
    assert "DepthToSpace" in {node.op_type for node in model.graph.node}


def test_the_same_net_gives_the_same_file_and_it_tells_nothing_of_this_machine(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        export(made("edsr"), out=tmp_path / place, metadata={}, role="student", family="edsr")
        files += (tmp_path / place).iterdir()
    one, other = (file.read_bytes() for file in files)
    assert one == other
    assert b"stack_trace" not in one
    assert b".py" not in one
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == ""


def test_a_graph_that_differs_from_torch_is_refused_with_the_figure(tmp_path: Path) -> None:
    net = made("edsr")
    graph = export(net, out=tmp_path, metadata={}, role="student", family="edsr")
    with torch.no_grad():
        net.last.bias += 0.5 * 255  # type: ignore[operator, union-attr]
    with pytest.raises(StageError, match=r"differs from torch by 0\.5, allowed is 0\.0001") as e:
        check_parity(net, graph, [], bound=1e-4)
    assert e.value.exit_code == 5


class Fickle(nn.Module):
    """What it does depends on the values it sees."""

    def forward(self, lr: Tensor) -> Tensor:
        factor = 2.0 if float(lr.mean()) > 0.5 else 1.0
        return nn.functional.interpolate(lr * factor, scale_factor=2)


def test_a_net_that_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    net = HookedNet(Fickle(), BlockSequence(), scale=2)
    with pytest.raises(StageError, match="torch cannot turn Fickle into an ONNX graph") as caught:
        export(net, out=tmp_path, metadata={}, role="teacher", family="Fickle")
    assert len(caught.value.what) < 400
    assert not list(tmp_path.iterdir())


class Ceiling(nn.Module):
    """As Real-CUGAN: pads odd sides and cuts its image back, which a trace of an even one leaves
    out."""

    def __init__(self) -> None:
        super().__init__()
        self.halve, self.raise_ = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 48, 1)

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        even = nn.functional.pad(lr, (0, width % 2, 0, height % 2))
        sr: Tensor = nn.functional.pixel_shuffle(self.raise_(self.halve(even)), 4)
        return sr[..., : 2 * height, : 2 * width]


def test_a_net_that_pads_inside_is_exported_for_sizes_that_need_none(tmp_path: Path) -> None:
    net = HookedNet(Ceiling().eval(), BlockSequence(), scale=2).eval()
    net.multiple = net.unpadded_multiple
    graph = export(net, out=tmp_path, metadata={}, role="teacher", family="Ceiling")
    assert graph.multiple == 16
    assert levels_apart(net, graph) == 0
    assert check_parity(net, graph, [np.zeros((37, 45, 3), np.uint8)], bound=1e-5) < 1e-5


class Sorting(nn.Module):
    """As ATD: the order of what is equal is kept."""

    def forward(self, lr: Tensor) -> Tensor:
        rows, order = torch.sort((lr * 4).floor().flatten(2), dim=-1, stable=True)
        sr = nn.functional.interpolate((rows + order / 1e4).view(lr.shape), scale_factor=2)
        return sr / 10


def test_sorting_keeps_the_order_of_equals(tmp_path: Path) -> None:
    net = HookedNet(Sorting().eval(), BlockSequence(), scale=2).eval()
    graph = export(net, out=tmp_path, metadata={}, role="teacher", family="Sorting")
    assert levels_apart(net, graph) == 0
