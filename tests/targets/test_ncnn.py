"""ncnn's models: pixels of the graphs they came from, names, bytes, and what is refused."""

from __future__ import annotations

import platform
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mipkd.core import plugins
from mipkd.core.errors import StageError, UnsupportedError
from mipkd.core.records import Graph
from mipkd.export.onnx import export
from targets._images import upscale
from targets._ncnn.param import Layer, drop_unread, read_layers, write_layers
from targets._onnxruntime.session import OrtSession
from targets.base import BuildRequest, find

NCNN = find("ncnn")


@pytest.fixture(autouse=True)
def _runs() -> None:
    if reason := NCNN.why_not() or NCNN.why_not_build("fp32"):
        pytest.skip(reason)


def levels_apart(graph: Graph, precision: str, out: Path) -> int:
    """The most that ncnn's image differs from ONNX Runtime's, at odd sizes."""
    built, worst = NCNN.build(BuildRequest(graph, precision, out)), 0
    with closing(NCNN.open(built)) as session, closing(OrtSession(graph.file, {})) as reference:
        for seed, size in enumerate(((31, 41), (17, 27), (40, 24))):
            lr = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
            found, expected = (
                upscale(one, lr, scale=2).astype(int) for one in (session, reference)
            )
            worst = max(worst, int(np.abs(found - expected).max()))
    return worst


@pytest.mark.parametrize("family", ["rlfn", "edge"])
def test_our_graphs_give_the_same_pixels(family: str, tmp_path: Path) -> None:
    arch = plugins.load("mipkd.archs", family, "ARCH")
    torch.manual_seed(0)
    net = arch.make(arch.shrink(arch.paper(2), "c8b2")).to_deployed().eval()
    graph = export(net, out=tmp_path, metadata={}, role="student", family=family)
    assert levels_apart(graph, "fp32", tmp_path / "fp32") <= 1
    assert levels_apart(graph, "fp16", tmp_path / "fp16") <= 2


def test_a_weight_below_16_bits_normal_range_is_kept(thirds: Graph, tmp_path: Path) -> None:
    """A net that is 0 to 255 inside divides by 255 in its last convolution."""
    model = onnx.load(thirds.file)
    for tensor in model.graph.initializer:
        if tensor.name == "wide":
            small = numpy_helper.to_array(tensor) * np.float32(2**-16)
            tensor.CopyFrom(numpy_helper.from_array(small, "wide"))
        else:
            large = numpy_helper.to_array(tensor) * np.float32(2**8)
            tensor.CopyFrom(numpy_helper.from_array(large, tensor.name))
    onnx.save(model, thirds.file)
    assert levels_apart(thirds, "fp16", tmp_path / "out") <= 1


def test_the_same_graph_gives_the_same_bytes_and_leaves_nothing_else(
    thirds: Graph, tmp_path: Path
) -> None:
    made = []
    for part in ("a", "b"):
        NCNN.build(BuildRequest(thirds, "fp32", tmp_path / part))
        made.append({f.name: f.read_bytes() for f in (tmp_path / part).iterdir()})
    assert made[0] == made[1]
    assert made[0].keys() == {"model.param", "model.bin"}


def test_apps_find_the_names_that_they_look_for(thirds: Graph, tmp_path: Path) -> None:
    request = BuildRequest(thirds, "fp16", tmp_path / "out", ncnn_names="realesrgan")
    built = NCNN.build(request)
    assert {f.name for f in built.file.parent.iterdir()} == {"mipkd-x2.param", "mipkd-x2.bin"}
    layers = read_layers(built.file.read_text())
    assert (layers[0].outputs, layers[-1].outputs) == (("data",), ("output",))
    with closing(NCNN.open(built)) as session:
        pair = np.random.default_rng(0).random((2, 3, 9, 5), dtype=np.float32)
        both = session.run(pair)
        assert np.array_equal(both[1:], session.run(pair[1:]))


def test_a_row_in_fp16_says_what_this_cpu_computes_in(thirds: Graph, tmp_path: Path) -> None:
    built = NCNN.build(BuildRequest(thirds, "fp16", tmp_path / "out"))
    assert NCNN.count_kernels(built) == {built.executes: 3}
    if platform.machine() in ("x86_64", "AMD64"):  # ncnn widens 16-bit weights there
        assert built.executes == "fp32"
        assert "asked for fp16, the runtime executes fp32" in built.notes


def with_node(graph: Graph, out: Path, *nodes: onnx.NodeProto, **values: np.ndarray) -> Graph:  # type: ignore[type-arg]
    """`thirds` with nodes from `a` to `a2` in place of the edge between its first convolutions."""
    model = onnx.load(graph.file)
    before, after = model.graph.node[:1], model.graph.node[1:]
    after[0].input[0] = "a2"
    kept = [*before, *nodes, *after]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    file = out / "edited.onnx"
    onnx.save(model, file)
    return replace(graph, file=file)


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        ([helper.make_node("ThresholdedRelu", ["a"], ["a2"], alpha=0.1)], "ThresholdedRelu"),
        (
            [
                helper.make_node("Shape", ["a"], ["shape"]),
                helper.make_node("Mul", ["shape", "more"], ["sizes"]),
                helper.make_node("Resize", ["a", "", "", "sizes"], ["big"], mode="linear"),
                helper.make_node("MaxPool", ["big"], ["a2"], kernel_shape=[3, 3], strides=[3, 3]),
            ],
            "F.interpolate",
        ),
    ],
    ids=["layer", "size"],
)
def test_an_operator_that_ncnn_has_not_is_named(
    nodes: list[onnx.NodeProto], named: str, thirds: Graph, tmp_path: Path
) -> None:
    graph = with_node(thirds, tmp_path, *nodes, more=np.array([1, 1, 3, 3]))
    onnx.checker.check_model(onnx.load(graph.file))
    with pytest.raises(UnsupportedError, match=f"ncnn has no layer for .*{named}"):
        NCNN.build(BuildRequest(graph, "fp32", tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def test_a_program_that_dies_is_a_refusal_with_its_last_words(
    thirds: Graph, tmp_path: Path
) -> None:
    values = [("lr", [1, 3, "height", "width"]), ("sr", [1, 3, "h", "w"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in values]
    node = helper.make_node("Custom", ["lr"], ["sr"], domain="nobody")
    model = helper.make_model(
        helper.make_graph([node], "custom", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("nobody", 1)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "custom.onnx")
    graph = replace(thirds, file=tmp_path / "custom.onnx")
    with pytest.raises(UnsupportedError, match=r"^ncnn: "):
        NCNN.build(BuildRequest(graph, "fp32", tmp_path / "out"))


@pytest.mark.parametrize("ending", [".param", ".bin"])
def test_a_model_without_one_of_its_files_is_an_error(
    ending: str, thirds: Graph, tmp_path: Path
) -> None:
    built = NCNN.build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    built.file.with_suffix(ending).unlink()
    with pytest.raises(StageError, match=rf"ncnn: .*model\{ending} is not a model"):
        NCNN.open(built)


def test_a_program_on_the_cpu_is_no_vulkan_device_to_measure() -> None:
    target = find("ncnn:vulkan")
    if reason := target.why_not():
        pytest.skip(reason)
    from targets._ncnn.vulkan import device

    assert target.simulated == ("llvmpipe" in device().device_name())


def test_a_param_file_is_read_and_written_with_a_split_where_two_read() -> None:
    layers = [
        Layer("Input", "in0", (), ("in0",), ()),
        Layer("Convolution", "a", ("in0",), ("1",), ("0=3", "1=1", "6=9")),
        Layer("ReLU", "nobody", ("1",), ("2",), ()),
        Layer("BinaryOp", "add", ("1", "in0"), ("out0",), ("0=0",)),
    ]
    kept = drop_unread(layers, ["out0"])
    text = write_layers(kept)
    assert [layer.name for layer in kept] == ["in0", "a", "add"]
    assert read_layers(text) == kept
    assert text.splitlines()[1] == "4 5"
    read = [blob for line in text.splitlines()[2:] for blob in _read_by(line)]
    assert len(read) == len(set(read))


def _read_by(line: str) -> list[str]:
    _, _, inputs, _, *blobs = line.split()
    return blobs[: int(inputs)]
