"""OpenVINO's INT8 of maps that a Concat joins: each keeps its own range."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_makers import node, save
from onnx import numpy_helper

from mipkd.core.records import Graph, PatchSet
from targets._openvino.fake_quantize import name_of, operations, restore_floats
from targets._openvino.quantize import RANGE_ESTIMATORS, NncfInt8
from targets._openvino.tuner import OvTuner
from targets.base import BuildRequest, FloatArray, find

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")

TARGET = find("openvino")
WIDE, SMALL = 64.0, 0.125  # what the two joined maps have at most


def made(file: Path, nodes: Sequence[onnx.NodeProto], values: dict[str, FloatArray]) -> Graph:
    """A graph whose map `c` is shuffled to twice the size."""
    shuffle = node("DepthToSpace", "c", "sr", blocksize=2, mode="CRD")
    save(file, [*nodes, shuffle], values, opset=20, ir=10)
    return Graph(file, "", "student", scale=2, multiple=1, opset=20, family="edsr")


UNIT = np.eye(3, dtype=np.float32)[:, :, None, None]
TWICE = np.repeat(UNIT, 4, 0)


def joined(file: Path, small: float) -> Graph:
    """Two maps of an image, one `small`, joined and read by `both`; `alone` reads the small one.

    The image is the mean of both, each brought back to its range.
    """
    values = {
        "to_wide": UNIT * WIDE,
        "to_small": UNIT * small,
        "both_back": np.concatenate([UNIT / WIDE, UNIT / small], 1) / 2,
        "back": UNIT / small,
        "twice": TWICE / 2,
    }
    nodes = [
        node("Conv", "lr to_wide", "wide", name="first"),
        node("Conv", "lr to_small", "small", name="second"),
        node("Concat", "wide small", "joined", name="join", axis=1),
        node("Conv", "joined both_back", "a", name="both"),
        node("Conv", "small back", "b", name="alone"),
        node("Add", "a b", "sum", name="add"),
        node("Conv", "sum twice", "c", name="last"),
    ]
    return made(file, nodes, values)


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


def test_weights_that_were_trained_meet_the_ranges_they_were_trained_with(
    patches: PatchSet, tmp_path: Path
) -> None:
    """Training moves ranges: a join may be scaled before it and not after, or the other way."""
    alike, apart = joined(tmp_path / "alike.onnx", WIDE / 2), joined(tmp_path / "apart.onnx", SMALL)
    for before, after in ((alike, apart), (apart, alike), (apart, apart)):
        first = OvTuner(settings(before, patches), tmp_path / before.file.stem, {"fp32": {}})
        scheme = first.quant_scheme(())
        folder = tmp_path / f"{before.file.stem}-{after.file.stem}"
        second = OvTuner(replace(settings(after, patches), scheme=scheme), folder, {"fp32": {}})
        with closing(second.session("learned", (), "fp32")) as session:
            assert session.run(image()).shape == (1, 3, 48, 40)


def test_a_recipe_leaves_no_multiplication_before_a_float(
    patches: PatchSet, tmp_path: Path
) -> None:
    nodes = [
        node("Conv", "lr to_wide", "wide", name="first"),
        node("Conv", "wide to_small", "small", name="second"),
        node("Concat", "wide small", "joined", name="join", axis=1),
        node("Conv", "joined both", "c", name="last"),
    ]
    values = {
        "to_wide": UNIT * WIDE,
        "to_small": UNIT / WIDE,
        "both": np.concatenate([TWICE / WIDE, TWICE], 1) / 2,
    }
    graph = made(tmp_path / "last.onnx", nodes, values)
    int8 = settings(graph, patches)
    scaled = int8.convert()
    assert "join/scaled_0" in names(scaled)
    quantized, _ = int8.quantize_by_recipe(scaled, "bf16")
    assert not {name for name in names(quantized) if "scaled" in name}


@pytest.mark.parametrize(
    "case", ["image", "computed weights", "weights", "two of one name", "infinite"]
)
def test_what_is_no_join_of_features_alone_is_left_alone(
    case: str, patches: PatchSet, tmp_path: Path
) -> None:
    wide = node("Conv", "lr to_wide", "wide", name="first")
    small = node("Conv", "lr to_small", "small", name="second")
    join = node("Concat", "wide small", "joined", name="join", axis=1)
    both = node("Conv", "joined both", "c", name="last")
    nodes = {
        "image": [wide, node("Concat", "lr wide", "joined", name="join", axis=1), both],
        "computed weights": [
            *(wide, small, join),
            node("ReduceMean", "lr", "mean", name="mean", keepdims=1),
            node("Mul", "both mean", "weights", name="times"),
            node("Conv", "joined weights", "c", name="last"),
        ],
        "weights": [
            node("ReduceMean", "lr", "mean", name="mean", keepdims=1),
            node("Mul", "to_wide mean", "one", name="one"),
            node("Mul", "to_small mean", "other", name="other"),
            node("Concat", "one other", "weights", name="join", axis=0),
            node("Conv", "lr weights", "six", name="first"),
            node("Conv", "six both", "c", name="last"),
        ],
        "two of one name": [
            *(wide, small, join),
            node("Conv", "joined narrow", "three", name="middle"),
            node("Concat", "three wide", "again", name="join", axis=1),
            node("Conv", "again both", "c", name="last"),
        ],
        "infinite": [
            wide,
            node("Mul", "lr inf", "small", name="second"),
            *(join, both),
        ],
    }[case]
    values = {
        "to_wide": UNIT * WIDE,
        "to_small": UNIT * SMALL,
        "both": np.concatenate([TWICE / WIDE, TWICE / SMALL], 1) / 2,
        "narrow": np.concatenate([UNIT / WIDE, UNIT / SMALL], 1) / 2,
        "inf": np.full((1, 1, 1, 1), np.inf, np.float32),
    }
    model = settings(made(tmp_path / "case.onnx", nodes, values), patches).convert()
    assert bool({n for n in names(model) if "scaled" in n}) == (case == "two of one name")


def test_a_multiplication_of_that_name_is_the_nets_own(patches: PatchSet, tmp_path: Path) -> None:
    """What `torch` calls an operation of a module named scaled_act."""
    nodes = [
        node("Conv", "lr unit", "a", name="first"),
        node("Mul", "a four", "b", name="/act/scaled_act/Mul"),
        node("Tanh", "b", "d", name="tanh"),
        node("Conv", "d unit", "e", name="/act/scaled_0"),
        node("Conv", "e twice", "c", name="last"),
    ]
    values = {"unit": UNIT, "twice": TWICE, "four": np.full((1, 1, 1, 1), 4, np.float32)}
    graph = made(tmp_path / "own.onnx", nodes, values)
    int8 = settings(graph, patches)
    original = int8.convert()
    quantized = int8.quantize_all(original, RANGE_ESTIMATORS[0])
    found = [name_of(op) for op in operations(quantized)]
    assert "/act/scaled_0" in found
    floats = restore_floats(quantized, original, found)
    computed = [openvino.compile_model(m, "CPU")(image())[0] for m in (floats, original)]
    np.testing.assert_allclose(*computed, atol=1e-3)
