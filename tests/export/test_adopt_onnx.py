"""Graphs that others made: what is adopted, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.images import ByteArray, downscale
from mipkd.export.adopt_onnx import adopt
from mipkd.export.image_range import Pair
from mipkd.export.onnx import PRODUCER

UNKNOWN = ["n", "c", "out height", "out width"]


def smooth(height: int = 96, width: int = 120) -> ByteArray:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)]
    return np.rint(np.stack(waves, -1) * 90 + 128).astype(np.uint8)


def probe(scale: int) -> list[Pair]:
    return [("waves", downscale(smooth(), scale), smooth())]


def repeat_graph(
    path: Path,
    *,
    bias: float = 0.0,
    size: tuple[Any, Any] = ("h", "w"),
    channels: int = 3,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    outputs: int = 1,
    before: list[onnx.NodeProto] | None = None,
    shape: list[Any] | None = None,
    scale: int = 2,
) -> Path:
    """A graph that repeats each pixel `scale` times a side: relu(x - bias) + bias, shuffled."""
    weight = np.zeros((channels * scale**2, channels, 1, 1), np.float32)
    for c in range(channels):
        weight[c * scale**2 : (c + 1) * scale**2, c] = 1
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.float32(bias), "bias"),
    ]
    nodes = [
        *(before or []),
        helper.make_node("Sub", ["between" if before else "image", "bias"], ["low"]),
        helper.make_node("Relu", ["low"], ["positive"]),
        helper.make_node("Add", ["positive", "bias"], ["back"]),
        helper.make_node("Conv", ["back", "weight"], ["wide"]),
        helper.make_node("DepthToSpace", ["wide"], ["out"], blocksize=scale, mode="CRD"),
    ]
    made = [helper.make_tensor_value_info("out", kind, UNKNOWN)]
    if outputs == 2:
        made.append(helper.make_tensor_value_info("wide", kind, UNKNOWN))
    shape = shape or [1, channels, *size]
    given = [helper.make_tensor_value_info("image", kind, shape)]
    graph = helper.make_graph(nodes, "repeat", given, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def ran(file: Path, lr_NCHW: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: lr_NCHW})[0]
    return found


def adopted(path: Path, out: Path, **options: Any) -> Any:
    options = {"scale": None, "image_range": None, "probe": probe} | options
    out.mkdir(exist_ok=True)
    return adopt(path, out=out, **options)


# A floor of 2 leaves pixels of 0..255 alone and would wash out pixels of 0..1, and the
# reverse for a ceiling: so the probe can tell the ranges apart.
@pytest.mark.parametrize("scale", [2, 3])
def test_scale_and_a_range_of_255_are_found_and_the_graph_brought_to_1(
    scale: int, tmp_path: Path
) -> None:
    path = repeat_graph(tmp_path / "x.onnx", bias=2.0, scale=scale)
    graph = adopted(path, tmp_path / "out")
    assert (graph.scale, graph.multiple, graph.family) == (scale, 1, "onnx")
    lr = np.random.default_rng(0).random((1, 3, 7, 5), dtype=np.float32)
    expected = np.maximum(lr, 2 / 255).repeat(scale, 2).repeat(scale, 3)
    np.testing.assert_allclose(ran(graph.file, lr), expected, atol=1e-6)


def test_a_given_range_is_believed_without_a_probe(tmp_path: Path) -> None:
    def of_noise(scale: int) -> list[Pair]:
        noise = np.random.default_rng(1).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
        return [("nothing alike", noise[0, ::scale, ::scale], noise[1])]

    path = repeat_graph(tmp_path / "x.onnx")
    graph = adopted(path, tmp_path / "out", image_range=1.0, probe=of_noise)
    lr = np.random.default_rng(0).random((1, 3, 4, 6), dtype=np.float32)
    np.testing.assert_allclose(ran(graph.file, lr)[..., ::2, ::2], lr, atol=1e-6)


def test_an_adopted_graph_is_known_again_as_one_of_ours(tmp_path: Path) -> None:
    first = adopted(repeat_graph(tmp_path / "x.onnx", bias=2.0), tmp_path / "a")
    facts = {p.key: p.value for p in onnx.load(first.file).metadata_props}
    assert facts["producer"] == PRODUCER
    assert (facts["range"], facts["scale"], facts["multiple"]) == ("0..1", "2", "1")
    again = adopted(first.file, tmp_path / "b", probe=lambda scale: [])
    lr = np.random.default_rng(0).random((1, 3, 5, 5), dtype=np.float32)
    assert np.array_equal(ran(first.file, lr), ran(again.file, lr))


def test_a_fixed_size_and_batch_are_made_free(tmp_path: Path) -> None:
    path = repeat_graph(tmp_path / "x.onnx", size=(64, 64), bias=2.0)
    graph = adopted(path, tmp_path / "out")
    assert ran(graph.file, np.zeros((1, 3, 5, 9), np.float32)).shape == (1, 3, 10, 18)


def test_an_old_opset_is_raised_so_that_it_can_be_quantised(tmp_path: Path) -> None:
    graph = adopted(repeat_graph(tmp_path / "x.onnx", opset=11, bias=2.0), tmp_path / "out")
    assert graph.opset == 13


def in_blocks(side: int) -> list[onnx.NodeProto]:
    """Nodes that work only where height and width are multiples of `side`."""
    return [
        helper.make_node("SpaceToDepth", ["image"], ["deep"], blocksize=side),
        helper.make_node("DepthToSpace", ["deep"], ["between"], blocksize=side),
    ]


def test_the_multiple_that_sizes_need_is_found(tmp_path: Path) -> None:
    path = repeat_graph(tmp_path / "x.onnx", before=in_blocks(8), bias=2.0)
    assert adopted(path, tmp_path / "out").multiple == 8


def reversed_rows() -> list[onnx.NodeProto]:
    """Nodes that turn the image upside down: a part is then not what it is in the whole."""
    index = helper.make_node(
        "Constant", [], ["to"], value=numpy_helper.from_array(np.array([-(2**31)]))
    )
    last = helper.make_node("Constant", [], ["from"], value=numpy_helper.from_array(np.array([-1])))
    axis = helper.make_node("Constant", [], ["axis"], value=numpy_helper.from_array(np.array([2])))
    step = helper.make_node("Constant", [], ["step"], value=numpy_helper.from_array(np.array([-1])))
    turn = helper.make_node("Slice", ["image", "from", "to", "axis", "step"], ["between"])
    return [index, last, axis, step, turn]


def test_a_fixed_size_that_changes_the_values_is_refused(tmp_path: Path) -> None:
    path = repeat_graph(tmp_path / "x.onnx", before=reversed_rows(), size=(64, 64))
    with pytest.raises(UnsupportedError, match="other values at another") as caught:
        adopted(path, tmp_path / "out")
    assert "dynamic height and width" in caught.value.hint


def fixed_reshape() -> list[onnx.NodeProto]:
    shape = numpy_helper.from_array(np.array([1, 3, 64, 64]))
    return [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Reshape", ["image", "shape"], ["between"]),
    ]


def quantized() -> list[onnx.NodeProto]:
    return [
        helper.make_node(
            "Constant", [], ["step"], value=numpy_helper.from_array(np.float32(1 / 255))
        ),
        helper.make_node("QuantizeLinear", ["image", "step"], ["small"]),
        helper.make_node("DequantizeLinear", ["small", "step"], ["between"]),
    ]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"outputs": 2}, "1 inputs and 2 outputs"),
        ({"channels": 1}, "its input is float of shape"),
        ({"kind": TensorProto.BFLOAT16}, "its input is bfloat16 of shape"),
        ({"shape": [1, "h", "w", 3]}, "its input is float of shape"),
        ({"before": quantized()}, "already quantised .DequantizeLinear, QuantizeLinear"),
        ({"before": fixed_reshape(), "size": (64, 64)}, "cannot be run at any size"),
        ({"scale": 1}, "its output is not larger than its input"),
        ({"bias": 900.0}, "no image range makes sense of it .1: .* dB, 255: .* dB"),
    ],
)
def test_what_cannot_be_adopted_is_refused_with_the_reason(
    made: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.onnx"
    if "kind" in made or "shape" in made or made.get("channels") == 1:
        # Not a whole graph of that kind: it is refused before it would be run.
        repeat_graph(path, **made)
        model = onnx.load(path)
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.append(helper.make_node("Identity", ["image"], ["out"]))
        onnx.save(model, path)
    else:
        repeat_graph(path, **made)
    with pytest.raises(UnsupportedError, match=says) as caught:
        adopted(path, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_nhwc_is_named_in_the_hint(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, "h", "w", 3])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, UNKNOWN)
    node = helper.make_node("Identity", ["image"], ["out"])
    model = helper.make_model(helper.make_graph([node], "same", [image], [out]))
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(UnsupportedError) as caught:
        adopted(tmp_path / "x.onnx", tmp_path / "out")
    assert "NHWC" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"not a graph at all", b"\x08\x08\x12\x03abc\xff"])
def test_a_corrupt_file_is_a_usage_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(UsageError, match="not an ONNX graph"):
        adopted(tmp_path / "x.onnx", tmp_path / "out")


def test_a_scale_that_the_user_got_wrong_is_said(tmp_path: Path) -> None:
    path = repeat_graph(tmp_path / "x.onnx")
    with pytest.raises(UsageError, match=r"its scale is x2, adopt\.scale asks for x4"):
        adopted(path, tmp_path / "out", scale=4)
