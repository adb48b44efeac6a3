"""What a target builds gives the pixels of its graph, or it is refused; so is INT8 without INT8."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_makers import deconvolution, fsrcnn, half_inside

from mipkd.core.errors import UnsupportedError
from mipkd.core.images import ByteArray
from mipkd.core.records import Built, Graph, PatchSet
from mipkd.export.adopt_onnx import adopt
from pipeline.bench.models import probe_target
from pipeline.stage import NotInKey, ready
from pipeline.stages import build as stage
from targets._parity import check_pixels
from targets.base import BuildRequest, Target, find
from targets.cpu import Cpu


def usable(name: str) -> Target:
    target = find(name)
    if reason := target.why_not():
        pytest.skip(reason)
    return target


def photo() -> ByteArray:
    y, x = np.mgrid[:33, :27]
    waves = np.stack([np.sin(x / 5 + c) * np.cos(y / 4 - c) for c in range(3)], -1)
    return np.rint(waves * 90 + 128).astype(np.uint8)


@pytest.fixture
def patches(tmp_path: Path) -> PatchSet:
    values = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    np.save(tmp_path / "patches.npy", values)
    return PatchSet(tmp_path / "patches.npy", "", "noise", count=4, size=(24, 24))


def adopted(path: Path) -> Graph:
    (path.parent / "adopted").mkdir(exist_ok=True)
    return adopt(path, scale=2, image_range=1.0, probe=lambda _: [], out=path.parent / "adopted")


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_every_float_precision_gives_the_graph_s_pixels(
    name: str, uint8: bool, tmp_path: Path
) -> None:
    target, graph = usable(name), adopted(half_inside(tmp_path / "x.onnx"))
    for precision in (p for p in target.precisions() if p != "int8"):
        request = BuildRequest(
            graph, precision, tmp_path / precision, pixels="uint8" if uint8 else "float32"
        )
        check_pixels(target, target.build(request), graph, [photo()])


class Converter(Cpu):
    """A converter with a fault: it shifts a bias, as one does that reads an attribute wrongly."""

    by = 0.02

    def build(self, request: BuildRequest) -> Built:
        built = super().build(request)
        model = onnx.load(built.file)
        model.graph.node[-1].output[0] = "right"
        shift = onnx.numpy_helper.from_array(np.float32(self.by), "shift")
        model.graph.initializer.append(shift)
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "shift"], ["sr"]))
        onnx.save(model, built.file)
        return built


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_converter_s_fault_is_refused_with_its_figure(
    precision: str, patches: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, graph = Converter(), adopted(half_inside(tmp_path / "x.onnx"))
    target.by = 0.02 if precision == "fp32" else 0.2
    built = replace(target.build(BuildRequest(graph, "fp32", tmp_path / "b")), precision=precision)
    with pytest.raises(UnsupportedError, match=rf"cpu {precision}: .* changes its image by") as e:
        check_pixels(target, built, graph, [photo()])
    assert e.value.exit_code == 3
    monkeypatch.setattr(stage, "find", lambda _: target)
    asked = (stage.BuildConfig(), "fp32", probe_target("cpu"), ready(graph), None, None)
    local = replace(asked[2], local=True)
    photos: Any = NotInKey(ready(patches))
    inputs = stage.BuildInputs(*asked[:2], local, *asked[3:], photos)
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match="converting the graph changes its image"):
        stage.build.function(inputs, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_int8_that_the_runtime_does_not_compute_is_no_int8(
    name: str, patches: PatchSet, tmp_path: Path
) -> None:
    """The first convolution stays float; whether ConvTranspose has 8 bits is the runtime's."""
    target, graph = usable(name), adopted(deconvolution(tmp_path / "x.onnx"))
    request = BuildRequest(graph, "int8", tmp_path / "out", patches)
    if name == "cpu":
        with pytest.raises(UnsupportedError, match="nothing to quantise") as caught:
            target.build(request)
        assert "--precision" in caught.value.hint
    with contextlib.suppress(UnsupportedError):
        assert target.build(request).executes == "int8"


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_what_came_with_float16_inside_is_quantised_for_real(
    name: str, patches: PatchSet, tmp_path: Path
) -> None:
    target, graph = usable(name), adopted(half_inside(tmp_path / "x.onnx"))
    built = target.build(BuildRequest(graph, "int8", tmp_path / "out", patches))
    assert built.executes == "int8"
    (tmp_path / "tuner").mkdir()
    tuner = target.tuner(BuildRequest(graph, "int8", tmp_path / "tuner", patches))
    assert tuner is not None
    assert sum("Conv" in op.kind for op in tuner.operations()) == 6


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_fsrcnn_is_quantised_for_real(name: str, patches: PatchSet, tmp_path: Path) -> None:
    target, graph = usable(name), adopted(fsrcnn(tmp_path / "x.onnx"))
    assert target.build(BuildRequest(graph, "int8", tmp_path / "out", patches)).executes == "int8"
    (tmp_path / "tuner").mkdir()
    tuner = target.tuner(BuildRequest(graph, "int8", tmp_path / "tuner", patches))
    assert tuner is not None
    assert {op.name for op in tuner.operations()} >= {f"conv{i}" for i in range(5)}


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_a_search_over_nothing_is_refused_too(name: str, patches: PatchSet, tmp_path: Path) -> None:
    """Sums of feature maps alone are no INT8."""
    target, graph = usable(name), adopted(half_inside(tmp_path / "x.onnx"))
    model = onnx.load(graph.file)
    nodes = [
        onnx.helper.make_node("Add", ["lr", "lr"], ["twice"], "add"),
        onnx.helper.make_node("Resize", ["twice", "", "sizes"], ["sr"], "up", mode="linear"),
    ]
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "sizes")
    for field, new in ((model.graph.node, nodes), (model.graph.initializer, [scales])):
        del field[:]
        field.extend(new)
    onnx.save(model, graph.file)
    (tmp_path / "tuner").mkdir()
    tuner = target.tuner(BuildRequest(graph, "int8", tmp_path / "tuner", patches))
    assert tuner is not None
    with pytest.raises(UnsupportedError, match="nothing to quantise"):
        tuner.operations()
