"""A graph that was rewritten gives the pixels of the file that came, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graph_makers import deconvolution, doubled, half_inside, node, repeat_weight, save
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from mipkd.core.errors import UnsupportedError
from mipkd.core.images import ByteArray, downscale
from mipkd.core.records import Graph
from mipkd.export import adopt_onnx
from mipkd.export.adopt_onnx import adopt
from mipkd.export.foreign_graph import external_files
from mipkd.export.image_range import Pair
from mipkd.export.onnx import open_session
from mipkd.export.opset import largest_opset
from mipkd.export.parity import runner

SIZES = ((13, 21), (27, 9), (35, 31))
SCALES = np.array([1, 1, 2, 2], np.float32)
NONE = np.zeros(0, np.float32)


def probe(scale: int) -> list[Pair]:
    y, x = np.mgrid[:72, :88]
    waves = np.stack([np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], -1)
    photo: ByteArray = np.rint(waves * 90 + 128).astype(np.uint8)
    return [("waves", downscale(photo, scale), photo)]


def adopted(path: Path, out: Path, **options: Any) -> Graph:
    options = {"scale": None, "image_range": 1.0, "probe": probe} | options
    out = out / "adopted"
    out.mkdir(exist_ok=True)
    return adopt(path, out=out, **options)


def levels_apart(path: Path, graph: Graph) -> int:
    """The largest difference of uint8 pixels, on noise of odd sizes."""
    came, made = (runner(open_session(str(file))) for file in (path, graph.file))
    rng, most = np.random.default_rng(7), 0
    for size in SIZES:
        lr = rng.random((1, 3, *size), np.float32)
        one, other = (np.rint(np.clip(run(lr), 0, 1) * 255).astype(int) for run in (came, made))
        most = max(most, int(np.abs(one - other).max()))
    return most


def test_old_linear_upsampling_keeps_its_meaning(tmp_path: Path) -> None:
    """onnx's converter makes "half_pixel" of it: 2.7 dB on Set5."""
    arrays = {"wide": repeat_weight() * 0, "scales": SCALES}
    up = node("Upsample", "lr scales", "skip", mode="linear")
    nodes = [*doubled("lr"), up, node("Add", "half skip", "sr")]
    nodes[1].output[0] = "half"
    path = save(tmp_path / "x.onnx", nodes, arrays, opset=9, ir=4)
    graph = adopted(path, tmp_path)
    assert levels_apart(path, graph) == 0
    assert graph.opset == 13


def resized(path: Path, opset: int, **facts: Any) -> Path:
    if opset < 9:
        nodes = [node("Upsample", "lr", "sr", scales=[1.0, 1.0, 2.0, 2.0], **facts)]
        return save(path, nodes, {}, opset=opset, ir=3)
    kind = "Upsample" if opset < 10 else "Resize"
    names = "scales" if opset < 11 else "roi scales"
    nodes = [helper.make_node(kind, ["lr", *names.split()], ["sr"], **facts)]
    held = {name: {"scales": SCALES, "roi": NONE}[name] for name in names.split()}
    return save(path, nodes, held, opset=opset, ir=4)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_upsampling_of_every_age_keeps_its_pixels(opset: int, mode: str, tmp_path: Path) -> None:
    path = resized(tmp_path / "x.onnx", opset, mode=mode)
    assert levels_apart(path, adopted(path, tmp_path)) == 0


@pytest.mark.parametrize("opset", [11, 12, 13, 18])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "mapping", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
def test_resizing_keeps_how_it_maps_coordinates(
    mapping: str, mode: str, opset: int, tmp_path: Path
) -> None:
    path = resized(tmp_path / "x.onnx", opset, mode=mode, coordinate_transformation_mode=mapping)
    assert levels_apart(path, adopted(path, tmp_path)) == 0


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resizing_keeps_how_it_rounds(rounding: str, tmp_path: Path) -> None:
    facts = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    path = resized(tmp_path / "x.onnx", 11, nearest_mode=rounding, **facts)
    assert levels_apart(path, adopted(path, tmp_path)) == 0


def constant(name: str, value: Any) -> onnx.NodeProto:
    return node("Constant", "", name, value=numpy_helper.from_array(np.array(value)))


THREES = {name: np.array([0.9, 1.0, 1.1], np.float32) for name in ("s", "b", "m", "v")}
OLD: dict[str, tuple[int, list[onnx.NodeProto], dict[str, Any]]] = {
    "batch norm": (7, [node("BatchNormalization", "lr s b m v", "x")], THREES),
    "batch norm 9": (9, [node("BatchNormalization", "lr s b m v", "x")], THREES),
    "instance norm": (7, [node("InstanceNormalization", "lr s b", "x")], THREES),
    "dropout": (7, [node("Dropout", "lr", "x", ratio=0.5)], {}),
    "clip": (7, [node("Clip", "lr", "x", min=0.1, max=0.8)], {}),
    "clip above": (10, [node("Clip", "lr", "x", max=0.8)], {}),
    "pad": (
        9,
        [
            node("Pad", "lr", "p", pads=[0, 0, 1, 2, 0, 0, 1, 2], mode="reflect"),
            node("Slice", "p", "x", axes=[2, 3], starts=[1, 2], ends=[-1, -2]),
        ],
        {},
    ),
    "pad with a value": (
        7,
        [
            node("Pad", "lr", "p", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.5),
            node("AveragePool", "p", "x", kernel_shape=[3, 3], strides=[1, 1]),
        ],
        {},
    ),
    "squeeze": (
        9,
        [node("Unsqueeze", "lr", "five", axes=[0]), node("Squeeze", "five", "x", axes=[0])],
        {},
    ),
    "softmax": (
        9,
        [node("Softmax", "lr", "soft", axis=1), node("Mul", "lr soft", "x")],
        {},
    ),
    "softmax of the last": (11, [node("Softmax", "lr", "q", axis=3), node("Add", "lr q", "x")], {}),
    "log-softmax": (11, [node("LogSoftmax", "lr", "q"), node("Exp", "q", "x")], {}),
    "reduced": (
        9,
        [
            node("ReduceSum", "lr", "sum", axes=[1], keepdims=1),
            node("ReduceMean", "lr", "mean", axes=[2, 3], keepdims=1),
            node("Mul", "sum mean", "x0"),
            node("Sub", "lr x0", "x"),
        ],
        {},
    ),
    "split": (
        9,
        [node("Split", "lr", "r g b", axis=1), node("Concat", "b g r", "x", axis=1)],
        {},
    ),
    "prelu": (7, [node("PRelu", "lr slope", "x")], {"slope": np.full((3, 1, 1), 0.2, np.float32)}),
    "gathered": (
        9,
        [constant("order", [2, 1, 0]), node("Gather", "lr order", "x", axis=1)],
        {},
    ),
    "attention": (
        7,
        [
            node("GlobalAveragePool", "lr", "pool"),
            node("Conv", "pool one", "gate0"),
            node("Sigmoid", "gate0", "gate"),
            node("Mul", "lr gate", "x"),
        ],
        {"one": np.eye(3, dtype=np.float32)[..., None, None]},
    ),
}


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("name", OLD)
def test_what_older_opsets_say_otherwise_keeps_its_pixels(
    name: str, inputs: bool, tmp_path: Path
) -> None:
    opset, nodes, arrays = OLD[name]
    arrays = {**arrays, "wide": repeat_weight()}
    path = save(
        tmp_path / "x.onnx",
        [*nodes, *doubled("x")],
        arrays,
        opset=opset,
        ir=3 if inputs else 4,
        weights_are_inputs=inputs,
    )
    graph = adopted(path, tmp_path)
    assert levels_apart(path, graph) == 0
    assert len(onnx.load(graph.file).graph.input) == 1


def test_a_rewriting_that_changes_pixels_is_refused_by_its_step_and_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(model: onnx.ModelProto) -> onnx.ModelProto:
        """The converter as it was, for a graph with an operator whose default has changed."""
        made: onnx.ModelProto = onnx.version_converter.convert_version(model, 13)
        for one in made.graph.node:
            if one.op_type == "LeakyRelu":
                del one.attribute[:]
        return made

    leaky = node("LeakyRelu", "low", "x", name="leaky", alpha=0.3)
    nodes = [node("Sub", "lr half", "low"), leaky, *doubled("x")]
    arrays = {"wide": repeat_weight(), "half": np.float32(0.5) * np.ones(1, np.float32)}
    path = save(tmp_path / "x.onnx", nodes, arrays, opset=9, ir=4)
    assert levels_apart(path, adopted(path, tmp_path)) == 0
    monkeypatch.setattr(adopt_onnx, "raise_opset", convert)
    with pytest.raises(UnsupportedError, match=r"raising opset 9 to 13.*LeakyRelu 'leaky'") as e:
        adopted(path, tmp_path)
    assert e.value.exit_code == 3
    assert "opset 13" in e.value.hint


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_float16_is_cast_to_float32(ends: bool, constant: bool, tmp_path: Path) -> None:
    path = half_inside(tmp_path / "x.onnx", ends=ends, constant=constant)
    model = onnx.load(path)
    model.metadata_props.add(key="licence", value="MIT")
    onnx.save(model, path)
    graph = adopted(path, tmp_path)
    made = onnx.load(graph.file)
    assert levels_apart(path, graph) <= 1
    assert graph.licence == "MIT"
    assert {tensor.data_type for tensor in made.graph.initializer} == {TensorProto.FLOAT}
    assert "Cast" not in {one.op_type for one in made.graph.node}


@pytest.mark.parametrize(
    ("dtype", "says"), [(ml_dtypes.bfloat16, "bfloat16"), (np.float64, "double")]
)
def test_floats_that_cannot_be_compared_are_refused_by_name(
    dtype: Any, says: str, tmp_path: Path
) -> None:
    path = half_inside(tmp_path / "x.onnx", dtype)
    with pytest.raises(UnsupportedError, match="ONNX Runtime cannot run it") as caught:
        adopted(path, tmp_path)
    assert says in caught.value.hint
    assert "float32" in caught.value.hint


def test_a_net_without_biases_has_the_usual_range(tmp_path: Path) -> None:
    path = deconvolution(tmp_path / "x.onnx")
    graph = adopted(path, tmp_path, image_range=None)
    assert "Mul" not in {one.op_type for one in onnx.load(graph.file).graph.node}


def test_an_opset_that_is_too_new_is_refused_with_the_largest_that_works(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    save(path, doubled("lr"), {"wide": repeat_weight()}, opset=largest_opset() + 3)
    with pytest.raises(UnsupportedError, match="is newer than") as caught:
        adopted(path, tmp_path)
    assert f"opset {largest_opset()} or older" in caught.value.hint
    save(path, doubled("lr"), {"wide": repeat_weight()}, opset=largest_opset())
    assert adopted(path, tmp_path).opset == largest_opset()


def test_operators_of_others_are_refused_by_their_domain(tmp_path: Path) -> None:
    nodes = [node("Swirl", "lr", "x", domain="my.company"), *doubled("x")]
    path = save(tmp_path / "x.onnx", nodes, {"wide": repeat_weight()})
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    onnx.save(model, path)
    with pytest.raises(UnsupportedError, match="ONNX Runtime cannot run it") as caught:
        adopted(path, tmp_path)
    assert "my.company" in caught.value.hint


def test_weights_in_a_file_beside_it_are_taken_in(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", doubled("lr"), {"wide": repeat_weight()})
    model = onnx.load(path)
    convert_model_to_external_data(model, location="x.data", size_threshold=0)
    onnx.save(model, path)
    assert external_files(path) == [tmp_path / "x.data"]
    graph = adopted(path, tmp_path)
    assert levels_apart(path, graph) == 0
    assert external_files(graph.file) == []


def test_a_loop_is_refused_as_nobody_can_tell_when_it_ends(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "go", "on"), node("Identity", "value", "same")],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("value", TensorProto.FLOAT, None),
        ],
        [info("on", TensorProto.BOOL, []), info("same", TensorProto.FLOAT, None)],
    )
    nodes = [node("Loop", "trips yes lr", "x", body=body), *doubled("x")]
    arrays = {"trips": np.array(2**62), "yes": np.array(True), "wide": repeat_weight()}
    path = save(tmp_path / "x.onnx", nodes, arrays)
    with pytest.raises(UnsupportedError, match="it holds a Loop"):
        adopted(path, tmp_path)


def test_a_fixed_size_and_batch_give_what_the_file_gives(tmp_path: Path) -> None:
    path = save(tmp_path / "x.onnx", doubled("lr"), {"wide": repeat_weight()}, size=(19, 33))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    graph = adopted(path, tmp_path)
    lr = np.random.default_rng(3).random((1, 3, 19, 33), np.float32)
    one, other = (runner(open_session(str(file)))(lr) for file in (path, graph.file))
    assert np.array_equal(one, other)
