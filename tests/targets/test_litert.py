"""LiteRT's graphs give ONNX Runtime's pixels, hold what phones know, and stay in one delegate."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mipkd.core import plugins
from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.records import Graph, PatchSet
from mipkd.export.onnx import edit_graph, export
from mipkd.export.pixel_shuffle import replace_pixel_shuffle
from targets.base import BuildRequest, FloatArray, find

pytest.importorskip("ai_edge_litert")

from targets._litert.delegates import find_refusals, left_by_xnnpack
from targets._litert.flatbuffer import write
from targets._litert.from_onnx import convert
from targets._litert.session import LiteRtSession, at_size

Node = tuple[str, list[str], dict[str, Any]]  # what it computes of which constants, and how
CHANNELS = 12


def weights(*shape: int) -> FloatArray:
    return np.random.default_rng(sum(shape)).normal(0, 0.2, shape).astype(np.float32)


CONSTANTS: dict[str, Any] = {
    "w": weights(12, 12, 3, 3),
    "head": weights(12, 3, 3, 3),
    "grouped": weights(12, 4, 3, 3),
    "each": weights(24, 1, 3, 3),
    "dot": weights(12, 24, 1, 1),
    "bias": weights(12),
    "turned": weights(12, 12, 4, 4),
    "slope": weights(12, 1, 1),
    "steep": np.linspace(-0.5, 2, 12, dtype=np.float32)[:, None, None],
    "vector": weights(1, 12, 1, 1),
    "one": np.array(1, np.float32),
    "zero": np.array(0, np.float32),
    "low": np.array(-0.3, np.float32),
    "six": np.array(6, np.float32),
    "two": np.array(2, np.float32),
    "half": np.array([1, 1, 0.5, 0.5], np.float32),
    "double": np.array([1, 1, 2, 2], np.float32),
    "sides": np.array([2, 3]),
    "channel": np.array([1]),
    "begin": np.array([2]),
    "end": np.array([2**63 - 1]),
    "parts": np.array([5, 7]),
    "around": np.array([0, 0, 1, 2, 0, 0, 3, 0]),
    "more": np.array([0, 0, 0, 0, 0, 1, 0, 0]),
    "gain": weights(12),
    "spread": np.linspace(0.1, 2, 12, dtype=np.float32),
}
FLOOR = {"nearest_mode": "floor"}
LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
PARTS: dict[str, list[Node]] = {
    "convolution": [("Conv", ["w", "bias"], {"pads": [1, 1, 1, 1]})],
    "dilated": [("Conv", ["w"], {"pads": [2, 2, 2, 2], "dilations": [2, 2]})],
    "strided": [("Conv", ["w"], {"pads": [1, 1, 1, 1], "strides": [2, 2]})],
    "uneven pads": [("Conv", ["w"], {"pads": [1, 0, 2, 3]})],
    "grouped": [("Conv", ["grouped"], {"group": 3, "pads": [1, 1, 1, 1]})],
    "depthwise": [("Conv", ["each"], {"group": 12}), ("Conv", ["dot"], {})],
    "transposed": [("ConvTranspose", ["turned"], {"strides": [2, 2], "pads": [1, 1, 1, 1]})],
    "transposed, uneven": [
        ("ConvTranspose", ["turned"], {"strides": [2, 2], "pads": [2, 1, 2, 0]})
    ],
    "transposed, more": [
        ("ConvTranspose", ["w"], {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]})
    ],
    "transposed, valid": [("ConvTranspose", ["turned"], {"strides": [4, 4]})],
    "fused": [("Conv", ["w"], {}), ("Relu", [], {})],
    "clip to 6": [("Clip", ["zero", "six"], {})],
    "clip to 1": [("Clip", ["zero", "one"], {})],
    "clip": [("Clip", ["low", "six"], {})],
    "clip below": [("Clip", ["low"], {})],
    "slopes": [("PRelu", ["slope"], {})],
    "leaky": [("LeakyRelu", [], {"alpha": 0.1})],
    "gelu": [("Gelu", [], {})],
    "sigmoid": [("Sigmoid", [], {}), ("Mul", ["vector"], {})],
    "power": [("Pow", ["two"], {}), ("Sqrt", [], {})],
    "scalar": [("Add", ["six"], {}), ("Div", ["two"], {}), ("Sub", ["vector"], {})],
    "pooled": [("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2]})],
    "pooled, same": [("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})],
    "mean": [("ReduceMean", ["sides"], {}), ("Add", ["vector"], {})],
    "enlarged": [("Resize", ["", "double"], LINEAR)],
    "reduced": [("Resize", ["", "half"], {"mode": "linear", **LINEAR})],
    "nearest": [("Resize", ["", "double"], {})],
    "nearest below": [
        ("Resize", ["", "half"], {"coordinate_transformation_mode": "asymmetric", **FLOOR})
    ],
    "slice": [("Slice", ["begin", "end", "channel"], {})],
    "mirrored": [("Pad", ["around"], {"mode": "reflect"})],
    "batch normalised": [("BatchNormalization", ["gain", "bias", "bias", "spread"], {})],
    "padded": [("Pad", ["around"], {})],
    "another channel": [("Pad", ["more", "one"], {})],
    "shuffled": [("Conv", ["w"], {}), ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"})],
    "shuffled later": [
        ("Conv", ["w"], {}),
        ("Mul", ["vector"], {}),
        ("PRelu", ["slope"], {}),
        ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    ],
    "shuffled by itself": [("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"})],
    "other shuffle": [("DepthToSpace", [], {"blocksize": 2, "mode": "DCR"})],
    "unshuffled": [("SpaceToDepth", [], {"blocksize": 2})],
    "normalised": [
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
        ("LayerNormalization", ["gain", "bias"], {"axis": -1}),
        ("Transpose", [], {"perm": [0, 3, 1, 2]}),
    ],
}


def chain(parts: Sequence[Node], file: Path, channels: int = CHANNELS) -> Path:
    """One operator behind another."""
    nodes, name = [], "lr"
    for number, (kind, constants, stated) in enumerate(parts):
        made = f"t{number}" if number + 1 < len(parts) else "sr"
        nodes.append(
            helper.make_node(kind, [name, *constants], [made], f"{kind}{number}", **stated)
        )
        name = made
    return save(nodes, file, channels)


def save(nodes: list[Any], file: Path, channels: int = CHANNELS) -> Path:
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "parts",
        [helper.make_tensor_value_info("lr", TensorProto.FLOAT, [1, channels, "h", "w"])],
        [helper.make_tensor_value_info("sr", TensorProto.FLOAT, [1, "c", "y", "x"])],
        [numpy_helper.from_array(CONSTANTS[name], name) for name in CONSTANTS if name in read],
    )
    imports = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), file)
    return file


def by_onnxruntime(file: Path, lr: FloatArray) -> FloatArray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"lr": lr})[0])


def assert_same(file: Path, sizes: Sequence[tuple[int, int]] = ((16, 20), (18, 14))) -> bytes:
    """The same pixels at two sizes; gives the model."""
    content = write(convert(file, 2))
    with closing(LiteRtSession(content, {})) as session:
        for size in sizes:
            lr = np.random.default_rng(1).normal(0, 1, (1, CHANNELS, *size)).astype(np.float32)
            wanted = by_onnxruntime(file, lr)
            assert session.run(lr) == pytest.approx(wanted, abs=2e-5)
    return content


@pytest.mark.parametrize("parts", PARTS)
def test_each_operator_gives_onnx_runtimes_pixels(parts: str, tmp_path: Path) -> None:
    assert_same(chain(PARTS[parts], tmp_path / "model.onnx"))


def test_a_graph_that_splits_and_joins(tmp_path: Path) -> None:
    """The shuffle's order of channels goes through a sum to both convolutions."""
    nodes = [
        helper.make_node("Split", ["lr", "parts"], ["few", "many"], axis=1),
        helper.make_node("Concat", ["many", "few"], ["all"], axis=1),
        helper.make_node("Conv", ["all", "w"], ["here"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["lr", "w"], ["other"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["here", "other"], ["sum"]),
        helper.make_node("Clip", ["sum", "zero", "one"], ["bright"]),
        helper.make_node("DepthToSpace", ["bright"], ["sr"], blocksize=2, mode="CRD"),
    ]
    file = save(nodes, tmp_path / "model.onnx")
    assert_same(file)
    codes = [op.code for op in convert(file, 1).ops]
    assert codes.count("CONV_2D") == 2


def test_xnnpack_takes_wide_joints_and_repeated_pixels(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Concat", ["lr"] * 7, ["all"], axis=1),
        helper.make_node("Slice", ["all", "begin", "end", "channel"], ["some"]),
        helper.make_node("Resize", ["lr", "", "double"], ["large"]),
        helper.make_node("Resize", ["some", "", "double"], ["larger"], **LINEAR),
        helper.make_node("Concat", ["large", "larger"], ["sr"], axis=1),
    ]
    content = assert_same(save(nodes, tmp_path / "model.onnx"))
    assert left_by_xnnpack(at_size(content, (1, 8, 8, CHANNELS))) == []


def test_a_size_taken_from_another_feature_map(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["lr"], ["size"], start=2),
        helper.make_node("Conv", ["lr", "w"], ["small"], strides=[2, 2]),
        helper.make_node("Shape", ["small"], ["front"], end=2),
        helper.make_node("Concat", ["front", "size"], ["wanted"], axis=0),
        helper.make_node("Resize", ["small", "", "", "wanted"], ["large"], **LINEAR),
        helper.make_node("Mul", ["large", "lr"], ["sr"]),
    ]
    assert_same(save(nodes, tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ([("Reshape", ["parts"], {})], "Reshape"),
        ([("Transpose", [], {"perm": [0, 1, 3, 2]})], r"Transpose \(perm"),
        ([("Resize", ["", "double"], {"mode": "cubic"})], r"Resize \(cubic\)"),
        ([("Resize", ["", "double"], FLOOR)], r"Resize \(nearest, half_pixel, floor"),
        ([("MaxPool", [], {"kernel_shape": [3, 3], "pads": [1, 0, 0, 0]})], r"MaxPool \(pads"),
    ],
)
def test_what_has_no_counterpart_is_named(parts: list[Node], named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=named) as caught:
        convert(chain(parts, tmp_path / "model.onnx"), 1)
    assert "--target" in caught.value.hint


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Graph]:
    """Exports a small student of a family, the first time that a test asks for it."""
    return functools.cache(lambda family: exported(family, tmp_path_factory.mktemp(family)))


def exported(family: str, out: Path) -> Graph:
    arch = plugins.load("mipkd.archs", family, "ARCH")
    torch.manual_seed(0)
    net = arch.make(arch.shrink(arch.paper(2), "c8b2")).eval()
    return export(net, out=out, metadata={}, role="student", family=family)


@pytest.fixture
def patches(tmp_path: Path) -> PatchSet:
    values = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    np.save(tmp_path / "patches.npy", values)
    return PatchSet(tmp_path / "patches.npy", "", "noise", count=4, size=(40, 40))


@pytest.mark.parametrize("family", ["edge", "edsr", "rlfn"])
def test_phones_take_all_of_a_student(
    family: str, students: Callable[[str], Graph], patches: PatchSet, tmp_path: Path
) -> None:
    graph = students(family)
    for precision in ("fp32", "fp16", "int8"):
        request = BuildRequest(graph, precision, tmp_path / precision, patches)
        built = find("litert").build(request)
        assert built.refused_by == {"XNNPACK": "", "GPU": "", "NPU": ""}
    tuner = find("litert").tuner(BuildRequest(graph, "int8", tmp_path / "all", patches))
    assert tuner is not None
    assert left_by_xnnpack(at_size(write(tuner.quantized("whole", ())), (1, 32, 32, 3))) == []


def test_what_phones_refuse_is_told(tmp_path: Path) -> None:
    gelu = at_size(write(convert(chain(PARTS["gelu"], tmp_path / "a.onnx"), 1)), (1, 8, 8, 12))
    assert find_refusals(gelu) == {"XNNPACK": "", "GPU": "1 GELU", "NPU": "1 GELU"}
    grouped = convert(chain(PARTS["grouped"], tmp_path / "b.onnx"), 1)
    found = find_refusals(at_size(write(grouped), (1, 8, 8, 12)))
    assert found["NPU"] == "1 CONV_2D in groups"


def test_a_shuffle_by_a_transposed_convolution(
    students: Callable[[str], Graph], tmp_path: Path
) -> None:
    file = shutil.copy(students("edge").file, tmp_path / "model.onnx")
    graph = edit_graph(replace(students("edge"), file=file), replace_pixel_shuffle)
    codes = [op.code for op in convert(graph.file, 1).ops]
    assert "DEPTH_TO_SPACE" not in codes
    assert codes.count("TRANSPOSE_CONV") == 1
    lr = np.random.default_rng(1).random((1, 3, 12, 10), dtype=np.float32)
    built = find("litert").build(BuildRequest(graph, "fp32", tmp_path / "fp32"))
    with closing(find("litert").open(built)) as session:
        assert session.run(lr) == pytest.approx(by_onnxruntime(graph.file, lr), abs=1e-5)


BETWEEN: dict[str, list[Node]] = {
    **{name: PARTS[name] for name in ("leaky", "gelu", "sigmoid", "slopes", "mean", "enlarged")},
    **{name: PARTS[name] for name in ("clip to 1", "clip to 6", "clip", "padded", "nearest")},
    **{name: PARTS[name] for name in ("pooled", "pooled, same", "scalar", "transposed")},
    "transposed, uneven": PARTS["transposed, uneven"],
    **{name: PARTS[name] for name in ("strided", "grouped", "depthwise", "power", "normalised")},
    "tanh": [("Tanh", [], {})],
    "hard swish": [("HardSwish", [], {})],
    "slopes above one": [("PRelu", ["steep"], {})],
}


@pytest.mark.parametrize("parts", BETWEEN)
def test_int8_stays_in_one_delegate_and_near_the_floats(
    parts: str, patches: PatchSet, tmp_path: Path
) -> None:
    first = ("Conv", ["head"], {"pads": [1, 1, 1, 1]})
    file = chain(
        [first, *BETWEEN[parts], ("Conv", ["w"], {"pads": [1, 1, 1, 1]})],
        tmp_path / "model.onnx",
        channels=3,
    )
    graph = Graph(file, "", "student", scale=1, multiple=2, opset=20, family="onnx")
    tuner = find("litert").tuner(BuildRequest(graph, "int8", tmp_path, patches))
    assert tuner is not None
    assert left_by_xnnpack(at_size(write(tuner.quantized("whole", ())), (1, 32, 32, 3))) == []
    lr = np.random.default_rng(1).random((1, 3, 16, 16), dtype=np.float32)
    wanted = by_onnxruntime(file, lr)
    every = [op.name for op in tuner.operations()]
    with closing(tuner.session("whole", every, "fp32")) as session:
        assert session.run(lr) == pytest.approx(wanted, abs=1e-5)
    with closing(tuner.session("whole", (), "fp32")) as session:
        assert np.abs(session.run(lr).clip(0, 1) - wanted.clip(0, 1)).mean() < 0.02


def test_int8_rounds_the_result_to_the_levels_of_pixels(
    students: Callable[[str], Graph], patches: PatchSet, tmp_path: Path
) -> None:
    """Rounding it again to pixels then changes nothing."""
    tuner = find("litert").tuner(BuildRequest(students("edge"), "int8", tmp_path, patches))
    assert tuner is not None
    with closing(tuner.session("whole", (), "fp32")) as session:
        levels = 255 * session.run(np.random.default_rng(2).random((1, 3, 9, 7), np.float32))
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    assert levels.min() >= 0


def test_an_image_that_is_too_small_is_refused(tmp_path: Path) -> None:
    file = chain([("Conv", ["w"], {})], tmp_path / "model.onnx")
    with (
        closing(LiteRtSession(write(convert(file, 1)), {})) as session,
        pytest.raises(UsageError, match="no image of 2x1 pixels"),
    ):
        session.run(np.zeros((1, CHANNELS, 1, 2), np.float32))


def test_what_is_no_model_is_refused(thirds: Graph, tmp_path: Path) -> None:
    built = find("litert").build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    whole = built.file.read_bytes()
    for content in (b"", b"nothing", whole[:40], whole[: len(whole) // 2], whole[:8] + bytes(400)):
        (tmp_path / "bad.tflite").write_bytes(content)
        with pytest.raises(UsageError, match="no LiteRT model"):
            find("litert").open(replace(built, file=tmp_path / "bad.tflite"))
    with pytest.raises(UsageError, match="does not end in"):
        find("litert").open(replace(built, file=thirds.file))
