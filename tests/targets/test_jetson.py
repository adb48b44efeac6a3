"""What is written for a Jetson, for which Jetsons, and what a Jetson would do with it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mipkd.core import plugins
from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.measurement import Host
from mipkd.core.records import Graph, PatchSet, TargetInfo
from mipkd.export.onnx import export
from targets._tensorrt import engine
from targets._tensorrt.cuda import gpu, is_jetson
from targets._tensorrt.symmetric_qdq import refuse_unreadable
from targets.base import BuildRequest
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
    built = TARGET.build(
        BuildRequest(graph, precision, tmp_path, patches, on=told(tensorrt="10.3.0"))
    )
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(built.file)
    refuse_unreadable(model)
    kinds = {t.data_type for t in model.graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in kinds) == (precision != "fp32")
    assert (onnx.TensorProto.INT8 in kinds) == (precision == "int8")
    assert built.options == {"profile": "16-256-1280"}
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
    name = engine.key(TARGET._flavour.load(), built.file.read_bytes(), engine.Profile.of(1))
    assert plan.stem == name
