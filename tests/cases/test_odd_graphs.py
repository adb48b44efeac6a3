"""Graphs with broken headers, odd names, functions, branches or randomness: read, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_makers import branching, doubled, node, repeat_weight, save, with_function
from onnx import TensorProto, helper

from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.images import ByteArray, downscale
from mipkd.core.records import Graph
from mipkd.export.adopt_onnx import adopt
from mipkd.export.image_range import Pair, with_unit_range
from mipkd.export.onnx import open_session
from mipkd.export.parity import FloatArray, rounding_of, runner

LR = np.random.default_rng(5).random((1, 3, 13, 21), np.float32)


def probe(scale: int) -> list[Pair]:
    y, x = np.mgrid[:72, :88]
    waves = np.stack([np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], -1)
    photo: ByteArray = np.rint(waves * 90 + 128).astype(np.uint8)
    return [("waves", downscale(photo, scale), photo)]


def adopted(path: Path, **options: Any) -> Graph:
    options = {"scale": None, "image_range": 1.0, "probe": probe} | options
    out = path.parent / "adopted"
    out.mkdir(exist_ok=True)
    return adopt(path, out=out, **options)


def plain(path: Path) -> onnx.ModelProto:
    """Two convolutions and a shuffle."""
    arrays = {"same": np.eye(3, dtype=np.float32)[..., None, None], "wide": repeat_weight()}
    return onnx.load(save(path, [node("Conv", "lr same", "x", name="same"), *doubled("x")], arrays))


def image_of(model: onnx.ModelProto | Path) -> Any:
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    return runner(open_session(content))(LR)


def type_the_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


def type_the_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = 99


def type_a_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def shorten_a_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"1234567"


def empty_a_constant(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, node("Constant", "", "c"))


def take_another_constant(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, node("Constant", "", "c", domain="my.company"))
    model.opset_import.append(helper.make_opsetid("my.company", 1))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (type_the_input, "99"),
        (type_the_output, "99"),
        (type_a_weight, "99"),
        (shorten_a_weight, "not an ONNX graph"),
        (empty_a_constant, "Constant"),
        (take_another_constant, "cannot run it"),
    ],
)
def test_a_broken_header_is_named(
    spoil: Callable[[onnx.ModelProto], None], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.onnx"
    model = plain(path)
    spoil(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises((UsageError, UnsupportedError), match=says) as caught:
        adopted(path)
    assert str(path) in caught.value.what
    assert "\n" not in caught.value.what


def test_nan_in_a_branch_is_found(tmp_path: Path) -> None:
    path = branching(tmp_path / "x.onnx", np.array([1, np.nan], np.float32)[:, None, None])
    with pytest.raises(UsageError, match="factor has 1 NaN"):
        adopted(path)


@pytest.mark.parametrize("inner", ["to_range", "from_range", "lr_in_range", "sr_in_range"])
def test_a_graph_of_range_255_may_hold_any_names(inner: str, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    model = plain(path)
    model.graph.node[0].name = "to_range_mul"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = inner
    onnx.save(model, path)
    made = adopted(path, image_range=255.0).file
    assert np.allclose(image_of(path), image_of(made), atol=1e-5)


def test_a_branch_reads_the_image_in_its_own_range(tmp_path: Path) -> None:
    path = branching(tmp_path / "x.onnx")
    model = onnx.load(path)
    run = runner(open_session(with_unit_range(model, 255.0).SerializeToString()))
    assert np.allclose(run(LR) * 255, runner(open_session(str(path)))(LR * 255), atol=1e-2)


def test_float16_inside_a_function_is_cast_to_float32(tmp_path: Path) -> None:
    path = with_function(tmp_path / "x.onnx")
    made = onnx.load(adopted(path).file)
    assert not made.functions
    to = [a.i for one in made.graph.node for a in one.attribute if a.name == "to"]
    assert TensorProto.FLOAT16 not in to
    assert np.abs(image_of(path) - image_of(made)).max() <= 1 / 255


def test_names_of_nodes_may_be_of_any_bytes_or_doubled(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    model = plain(path)
    expected = image_of(model)
    for name in ("zzzz", "wide"):
        model.graph.node[0].name = name
        path.write_bytes(model.SerializeToString().replace(b"zzzz", b"\xff\xfe\xfd\xfc"))
        made = onnx.load(adopted(path).file)
        names = [one.name for one in made.graph.node]
        assert all(isinstance(one, str) for one in names)
        assert len({*names}) == len(names)
        assert np.array_equal(image_of(made), expected)


@pytest.mark.parametrize("where", ["tensor", "weight", "metadata"])
def test_other_names_that_are_no_utf8_are_refused(where: str, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    model = plain(path)
    if where == "tensor":
        model.graph.node[0].output[0] = model.graph.node[1].input[0] = "zzzz"
    elif where == "weight":
        model.graph.initializer[0].name = model.graph.node[0].input[1] = "zzzz"
    else:
        model.metadata_props.add(key="licence", value="zzzz")
    path.write_bytes(model.SerializeToString().replace(b"zzzz", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(UsageError, match="no UTF-8"):
        adopted(path)


RANDOM = {
    "RandomNormalLike": [node("RandomNormalLike", "lr", "r", scale=0.05)],
    "RandomUniform": [node("RandomUniform", "", "r", shape=[1, 3, 1, 1], high=0.1, low=-0.1)],
    "Dropout": [node("Dropout", "lr ratio yes", "r")],
}


@pytest.mark.parametrize("kind", RANDOM)
def test_a_random_graph_is_refused_by_what_it_holds(kind: str, tmp_path: Path) -> None:
    nodes = [*RANDOM[kind], node("Add", "lr r", "x"), *doubled("x")]
    arrays = {"wide": repeat_weight(), "ratio": np.float32(0.3), "yes": np.array(True)}
    path = save(tmp_path / "x.onnx", nodes, {k: np.array(v) for k, v in arrays.items()})
    with pytest.raises(UnsupportedError, match=f"another image each time: it holds {kind}") as e:
        adopted(path)
    assert "eval mode" in e.value.hint


def test_an_operator_that_is_not_implemented_in_its_opset_is_named(tmp_path: Path) -> None:
    nodes = [node("Upsample", "lr", "sr", height_scale=2.0, width_scale=2.0)]
    path = save(tmp_path / "x.onnx", nodes, {}, opset=1, ir=3)
    with pytest.raises(UnsupportedError, match="cannot run it") as caught:
        adopted(path)
    assert "opset 13 or later" in caught.value.hint


def test_rounding_excuses_no_large_difference() -> None:
    """A step function of the last bit moves by all of its range."""

    def parity_of_the_last_bit(lr_NCHW: FloatArray) -> FloatArray:
        return (lr_NCHW.view(np.int32) & 1).astype(np.float32)

    assert rounding_of(parity_of_the_last_bit, LR) == 0.05
