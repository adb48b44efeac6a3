"""INT8 of a graph with an If: what its branches read from outside stays, and stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_makers import branching

from mipkd.core.records import Graph, PatchSet
from mipkd.export.adopt_onnx import adopt
from mipkd.export.onnx import open_session
from mipkd.export.parity import runner
from targets._onnx.uint8_io import give_uint8_io
from targets._onnx.unquantize import operations, restore_floats
from targets._onnxruntime.quantize import OrtInt8, prepare_graph, quantize_graph
from targets.base import BuildRequest

SIZES = [(9, 11), (31, 20)]  # one for either branch


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    out = tmp_path / "adopted"
    out.mkdir()
    path = branching(tmp_path / "x.onnx")
    return adopt(path, scale=2, image_range=1.0, probe=lambda _: [], out=out)


@pytest.fixture
def patches(tmp_path: Path) -> PatchSet:
    file = tmp_path / "patches.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8))
    return PatchSet(file, "", "noise", count=4, size=(24, 24))


def gap(one: str | bytes, other: str | bytes, size: tuple[int, int]) -> float:
    lr = np.random.default_rng(3).random((1, 3, *size), np.float32)
    return float(np.abs(runner(open_session(one))(lr) - runner(open_session(other))(lr)).max())


@pytest.mark.parametrize("size", SIZES)
def test_int8_gives_the_graphs_image_in_either_branch(
    size: tuple[int, int], graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    file = tmp_path / "int8.onnx"
    quantize_graph(BuildRequest(graph, "int8", tmp_path, patches), file, saturates=False)
    assert operations(onnx.load(file))
    assert gap(str(file), str(graph.file), size) < 0.03


@pytest.mark.parametrize("floats", [["first"], ["second"], ["first", "second", "wide"]])
@pytest.mark.parametrize("size", SIZES)
def test_floats_come_back_around_branches(
    size: tuple[int, int], floats: list[str], graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    original = prepare_graph(graph, tmp_path)
    quantized = OrtInt8(patches, saturates=False).quantize_all(original, tmp_path / "q.onnx")
    made = restore_floats(quantized, original, floats).SerializeToString()
    assert gap(made, str(graph.file), size) < (0.03 if len(floats) < 3 else 1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_uint8_reaches_branches_past_any_names(
    size: tuple[int, int], graph: Graph, tmp_path: Path
) -> None:
    model = onnx.load(graph.file)
    (first,) = (one for one in model.graph.node if one.name == "first")
    (second,) = (one for one in model.graph.node if one.name == "second")
    second.name, second.output[0] = "uint8_clip", "lr_float"
    model.graph.node[-2].input[0] = "lr_float"
    weight = next(one for one in model.graph.initializer if one.name == first.input[1])
    weight.name = first.input[1] = "uint8_white"
    file = tmp_path / "uint8.onnx"
    onnx.save(model, file)
    give_uint8_io(file)
    lr = np.random.default_rng(3).integers(0, 256, (1, 3, *size), dtype=np.uint8)
    (levels,) = open_session(str(file)).run(None, {"lr": lr})
    expected = runner(open_session(str(graph.file)))(lr.astype(np.float32) / np.float32(255))
    assert np.abs(levels - np.clip(expected, 0, 1) * 255).max() <= 0.51
