"""What is written for a Jetson, for which Jetsons, and what a Jetson would do with it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mipkd.core import plugins
from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.measurement import Host
from mipkd.core.records import Graph, PatchSet, TargetInfo
from mipkd.export.onnx import export
from mipkd.export.pixel_shuffle import replace_pixel_shuffle
from targets._tensorrt import engine
from targets._tensorrt.cuda import gpu, is_jetson
from targets._tensorrt.dla import refuse_others
from targets._tensorrt.profile import Profile
from targets._tensorrt.symmetric_qdq import refuse_unreadable
from targets.base import BuildRequest, find
from targets.jetson import TARGET

here = is_jetson()
elsewhere = pytest.mark.skipif(here, reason="describes a machine that is no Jetson")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    arch = plugins.load("mipkd.archs", "edsr", "ARCH")
    torch.manual_seed(0)
    net = arch.make(replace(arch.paper(2), channels=16, blocks=2)).eval()
    out = tmp_path_factory.mktemp("graph")
    return export(net, out=out, metadata={}, role="student", family="edsr")


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    file = tmp_path_factory.mktemp("patches") / "patches.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8))
    return PatchSet(file, "", "noise", 4, (24, 24))


def told(*, tensorrt: str = "", why_not: str = "", simulated: bool = False) -> TargetInfo:
    host = Host("orin-7", "ARMv8", 8, 8 << 30, "Linux")
    versions = {"tensorrt": tensorrt} if tensorrt else {}
    return TargetInfo("jetson", why_not, simulated, ("fp32", "fp16", "int8"), versions, host)


@elsewhere
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_host_writes_the_typed_graph_and_no_engine(
    precision: str, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    on, sizes = told(tensorrt="10.3.0"), ((180, 320), (64, 64))
    built = TARGET.build(
        BuildRequest(graph, precision, tmp_path, patches, on=on, sizes=sizes, margin=9)
    )
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(built.file)
    refuse_unreadable(model)
    kinds = {t.data_type for t in model.graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in kinds) == (precision != "fp32")
    assert (onnx.TensorProto.INT8 in kinds) == (precision == "int8")
    assert built.options == {"profile": "16x16-320x180-320x180", "margin": "9"}
    assert any("built on the Jetson" in note for note in built.notes)


@pytest.mark.parametrize("version", ["10.3.0", "10.7.0.23", "11.4.1"])
def test_tensorrt_10_and_later_get_the_same_graph(
    version: str, graph: Graph, tmp_path: Path
) -> None:
    for place, on in (("a", None), ("b", told(tensorrt=version))):
        TARGET.build(BuildRequest(graph, "fp16", tmp_path / place, on=on))
    first, second = ((tmp_path / place / "model.onnx").read_bytes() for place in "ab")
    assert first == second


def test_an_older_tensorrt_is_refused_before_anything_is_built(
    graph: Graph, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=r"jetson: orin-7 has TensorRT 8\.5\.2") as caught:
        TARGET.build(BuildRequest(graph, "fp16", tmp_path / "out", on=told(tensorrt="8.5.2")))
    assert "JetPack 6.1" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_jetson_without_tensorrt_is_told_how_to_get_it(graph: Graph, tmp_path: Path) -> None:
    on = told(why_not="tensorrt: the package is not installed")
    with pytest.raises(MissingError, match="orin-7 reports no TensorRT: tensorrt: the") as caught:
        TARGET.build(BuildRequest(graph, "fp16", tmp_path / "out", on=on))
    assert "sudo apt install python3-libnvinfer" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "kind"),
    [("10.3.0", "fp16"), ("", "fp16"), ("10.16.2.10", "bf16"), ("11.4.1", "bf16")],
)
def test_where_fp16_would_overflow_the_jetsons_tensorrt_decides(
    version: str, kind: str, graph: Graph, tmp_path: Path
) -> None:
    model = onnx.load(graph.file)
    weights = [t for t in model.graph.initializer if len(t.dims) == 4][1:3]
    for weight, factor in zip(weights, (1e6, 1e-6), strict=True):
        value = onnx.numpy_helper.to_array(weight) * np.float32(factor)
        weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
    onnx.save(model, tmp_path / "loud.onnx")
    on = told(tensorrt=version) if version else told(simulated=True)
    loud = replace(graph, file=tmp_path / "loud.onnx")
    built = TARGET.build(BuildRequest(loud, "fp16", tmp_path / "out", on=on))
    assert built.executes == kind
    assert onnx.load(built.file).opset_import[0].version == (22 if kind == "bf16" else 20)


ORIN_DLA = told(tensorrt="11.4.1")


@pytest.fixture(scope="module")
def deconvolved(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The same without DepthToSpace, as `export.shuffle` makes it."""
    file = tmp_path_factory.mktemp("deconvolved") / "model.onnx"
    onnx.save(replace_pixel_shuffle(onnx.load(graph.file)), file)
    return replace(graph, file=file)


@elsewhere
def test_a_dla_takes_what_nvidia_lists_at_the_sizes_asked_for(
    deconvolved: Graph, tmp_path: Path
) -> None:
    dla = find("jetson:dla1")
    assert dla.precisions() == ("fp16",)
    sizes = ((24, 40), (32, 32))
    request = BuildRequest(deconvolved, "fp16", tmp_path, on=ORIN_DLA, sizes=sizes, margin=5)
    built = dla.build(request)
    assert built.options == {"sizes": "40x24,32x32", "margin": "5"}
    assert any("it never ran" in note and "on the GPU" in note for note in built.notes)
    image = np.random.default_rng(0).random((1, 3, 30, 90), np.float32)
    with closing(dla.open(built)) as session:
        assert session.run(image).shape == (1, 3, 60, 180)


@elsewhere
def test_what_a_dla_does_not_compute_is_named_with_a_way_out(
    graph: Graph, deconvolved: Graph, tmp_path: Path
) -> None:
    dla = find("jetson:dla0")
    shuffled = dla.build(BuildRequest(graph, "fp16", tmp_path, on=ORIN_DLA))
    assert any("on the GPU" in note and "1 DepthToSpace" in note for note in shuffled.notes)
    assert any("--set export.shuffle=conv_transpose keeps" in note for note in shuffled.notes)
    model = onnx.load(deconvolved.file)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Erf"
    onnx.save(model, tmp_path / "erf.onnx")
    erf = replace(deconvolved, file=tmp_path / "erf.onnx")
    with pytest.raises(UnsupportedError, match="does not compute Erf") as caught:
        dla.build(BuildRequest(erf, "fp16", tmp_path / "out", on=ORIN_DLA))
    assert caught.value.hint == "take the GPU: --target jetson"


@pytest.mark.parametrize(
    ("kind", "facts", "constant", "wrong"),
    [
        ("Resize", {"mode": "nearest"}, np.float32([1, 1, 2, 2]), ""),
        ("Resize", {"mode": "nearest"}, np.float32([1, 1, 1.5, 2]), "whole number"),
        ("Concat", {"axis": 1}, None, ""),
        ("Concat", {"axis": 2}, None, "another axis than channels"),
        ("ConvTranspose", {"strides": [2, 2]}, np.zeros((3, 3, 2, 2), np.float16), ""),
        ("ConvTranspose", {"group": 3}, np.zeros((3, 1, 2, 2), np.float16), "grouped"),
        ("Conv", {"strides": [9, 9]}, np.zeros((3, 3, 2, 2), np.float16), "stride"),
        ("Conv", {}, np.zeros((3, 3, 33, 1), np.float16), "its weights are 3x3x33x1"),
        ("MatMul", {}, np.zeros((3, 3), np.float16), ""),
        ("MatMul", {}, None, "no constant"),
    ],
)
def test_limits_of_a_dlas_operators_are_held(
    kind: str, facts: dict[str, Any], constant: Any, wrong: str
) -> None:
    from onnx import helper, numpy_helper

    inputs = {"Resize": ["x", "", "c"]}.get(kind, ["x", "x" if constant is None else "c"])
    half = onnx.TensorProto.FLOAT16
    ends = [helper.make_tensor_value_info(n, half, ["n", 3, "h", "w"]) for n in ("x", "y")]
    constants = [] if constant is None else [numpy_helper.from_array(constant, "c")]
    node = helper.make_node(kind, inputs, ["y"], "it", **facts)
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    if not wrong:
        assert refuse_others(model) == {}
        return
    with pytest.raises(UnsupportedError, match=f"does not compute {kind} 'it': .*{wrong}"):
        refuse_others(model)


@elsewhere
def test_a_dla_is_refused_where_its_tensorrt_has_none(deconvolved: Graph, tmp_path: Path) -> None:
    for version in ("10.3.0", "10.16.2", "11.4.0"):
        request = BuildRequest(deconvolved, "fp16", tmp_path, on=told(tensorrt=version))
        with pytest.raises(UnsupportedError, match=f"orin-7: TensorRT {version} offers") as caught:
            find("jetson:dla0").build(request)
        assert "JetPack 7.2.2" in caught.value.hint


@elsewhere
def test_another_host_that_simulates_needs_no_tensorrt(graph: Graph, tmp_path: Path) -> None:
    built = TARGET.build(BuildRequest(graph, "fp32", tmp_path, on=told(simulated=True)))
    image = np.random.default_rng(0).random((1, 3, 17, 30), np.float32)
    with closing(TARGET.open(built)) as session:
        assert session.run(image).shape == (1, 3, 34, 60)


@elsewhere
def test_a_host_can_run_it_and_tells_no_tensorrt() -> None:
    assert TARGET.why_not() == ""
    assert TARGET.simulated
    assert {"onnx", "onnxruntime", "numpy"} <= set(TARGET.versions())
    assert "tensorrt" not in TARGET.versions()


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("etc/nv_tegra_release", b"# R36 (release), REVISION: 4.0", True),
        ("proc/device-tree/compatible", b"nvidia,p3701-0000\0nvidia,tegra234\0", True),
        ("proc/device-tree/compatible", b"raspberrypi,5-model-b\0brcm,bcm2712\0", False),
        ("etc/os-release", b"NAME=Ubuntu", False),
    ],
)
def test_a_jetson_is_known_by_its_system_or_its_device_tree(
    file: str, content: bytes, found: bool, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_bytes(content)
    assert is_jetson(tmp_path) == found


def test_what_jetpack_lacks_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    if here or TARGET._flavour.found():
        pytest.skip("describes a machine without TensorRT")
    monkeypatch.setattr("targets.jetson.is_jetson", lambda: True)
    assert not TARGET.simulated
    reason = TARGET.why_not()
    assert "the package is not installed; sudo apt install python3-libnvinfer" in reason
    with pytest.raises(MissingError):
        TARGET.versions()


@pytest.mark.gpu
@pytest.mark.skipif(not here, reason="needs a Jetson")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_jetson_builds_once_and_gives_the_pixels_of_its_graph(
    precision: str,
    graph: Graph,
    patches: PatchSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from targets._tensorrt.session import SimulatedSession

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = TARGET.build(BuildRequest(graph, precision, tmp_path, patches))
    image = np.random.default_rng(0).random((1, 3, 40, 24), np.float32)
    with (
        closing(TARGET.open(built)) as session,
        closing(SimulatedSession(built.file, "expected")) as expected,
    ):
        assert np.abs(session.run(image) - expected.run(image)).max() < 0.02
    (plan,) = (tmp_path / "cache").rglob("*.plan")
    device = gpu()
    assert device
    name = engine.key(TARGET._flavour.load(), built.file.read_bytes(), Profile.of(()))
    assert plan.stem == name
