"""OpenVINO's INT8 of maps that a Concat joins: each keeps its own range."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mipkd.core.records import Graph, PatchSet
from targets.base import BuildRequest, FloatArray, find

pytest.importorskip("openvino")
pytest.importorskip("nncf")

from targets._openvino.fake_quantize import name_of, operations, restore_floats
from targets._openvino.quantize import RANGE_ESTIMATORS, NncfInt8

TARGET = find("openvino")
WIDE, SMALL = 64.0, 0.125  # what the two joined maps have at most


def joined(file: Path, small: float) -> Graph:
    """Two maps of an image, one `small`, joined and read by `both`; `alone` reads the small one.

    The image is the mean of both, each brought back to its range.
    """
    unit = np.eye(3, dtype=np.float32)[:, :, None, None]
    values = {
        "to_wide": unit * WIDE,
        "to_small": unit * small,
        "both_back": np.concatenate([unit / WIDE, unit / small], 1) / 2,
        "back": unit / small,
        "twice": np.repeat(unit, 4, 0) / 2,
    }
    nodes = [
        helper.make_node("Conv", ["lr", "to_wide"], ["wide"], "first"),
        helper.make_node("Conv", ["lr", "to_small"], ["small"], "second"),
        helper.make_node("Concat", ["wide", "small"], ["joined"], "join", axis=1),
        helper.make_node("Conv", ["joined", "both_back"], ["a"], "both"),
        helper.make_node("Conv", ["small", "back"], ["b"], "alone"),
        helper.make_node("Add", ["a", "b"], ["sum"], "add"),
        helper.make_node("Conv", ["sum", "twice"], ["c"], "last"),
        helper.make_node("DepthToSpace", ["c"], ["sr"], "shuffle", blocksize=2, mode="CRD"),
    ]
    shape = [1, 3, "height", "width"]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "joined",
            [helper.make_tensor_value_info("lr", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("sr", TensorProto.FLOAT, [1, 3, "h", "w"])],
            [numpy_helper.from_array(v, k) for k, v in values.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, file)
    return Graph(file, "", "student", scale=2, multiple=1, opset=20, family="edsr")


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return joined(tmp_path / "joined.onnx", SMALL)


def image() -> FloatArray:
    levels = np.random.default_rng(1).integers(0, 256, (1, 3, 24, 20))
    return (levels / 255).astype(np.float32)


def settings(graph: Graph, patches: PatchSet) -> NncfInt8:
    return NncfInt8(graph.file, patches, "CPU", saturates=False)


def names(model: Any) -> set[str]:
    return {op.get_friendly_name() for op in model.get_ops()}


def test_a_small_map_keeps_its_range_beside_a_wide_one(
    graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    """With the wide one's range a step is 0.25, twice the whole range of the small one."""
    lr = image()
    tuner = TARGET.tuner(BuildRequest(graph, "int8", tmp_path / "built", patches))
    assert tuner is not None
    for estimator in RANGE_ESTIMATORS:
        with closing(tuner.session(estimator, (), "fp32")) as session:
            seen = session.run(lr)
        np.testing.assert_allclose(seen, lr.repeat(2, 2).repeat(2, 3), atol=0.02)


def test_floats_are_as_they_were(graph: Graph, patches: PatchSet) -> None:
    int8 = settings(graph, patches)
    scaled = int8.convert()
    assert {"join/scaled_0", "join/scaled_1"} <= names(scaled)
    quantized = int8.quantize_all(scaled, RANGE_ESTIMATORS[0])
    assert not {"join/scaled_0", "join/scaled_1"} & {name_of(op) for op in operations(quantized)}
    floats = restore_floats(quantized, scaled, [name_of(op) for op in operations(quantized)])
    assert not {name for name in names(floats) if "scaled" in name}
    (both,) = [op for op in floats.get_ops() if name_of(op) == "both"]
    weights = both.input_value(1).get_node().data
    assert np.array_equal(
        weights, numpy_helper.to_array(onnx.load(graph.file).graph.initializer[2])
    )


def test_a_training_leaves_the_reader_of_scaled_maps_float(
    graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    tuner = TARGET.tuner(BuildRequest(graph, "int8", tmp_path / "built", patches))
    assert tuner is not None
    scheme = tuner.quant_scheme(("last",))
    assert scheme.floats == ("last", "both")
    assert not {name for grid in scheme.grids for name, _ in grid.readers} & {"join", "both"}


def test_maps_of_like_ranges_are_left_alone(patches: PatchSet, tmp_path: Path) -> None:
    graph = joined(tmp_path / "alike.onnx", WIDE / 2)
    assert not {name for name in names(settings(graph, patches).convert()) if "scaled" in name}
