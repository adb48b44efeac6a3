"""Explicit Q/DQ for TensorRT, by each library that makes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.sensitive_layers import sensitive_layers_of
from mipkd.core import plugins
from mipkd.core.errors import MissingError
from mipkd.core.records import PatchSet
from mipkd.export.onnx import export
from targets._tensorrt import symmetric_qdq


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return wide(32, tmp_path_factory.mktemp("graph"))


def wide(channels: int, out: Path) -> Any:
    arch = plugins.load("mipkd.archs", "edsr", "ARCH")
    net = arch.make(replace(arch.paper(2), channels=channels, blocks=2)).eval()
    return onnx.load(export(net, out=out, metadata={}, role="student", family="edsr").file)


@pytest.fixture
def patches(tmp_path: Path) -> PatchSet:
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    np.save(tmp_path / "patches.npy", noise)
    return PatchSet(tmp_path / "patches.npy", "", "test", 4, (24, 24))


@pytest.mark.parametrize("maker", ["nncf", "modelopt"])
def test_ends_and_additions_stay_float_and_the_rest_is_signed_and_symmetric(
    maker: str, model: Any, patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(maker, reason=f"needs {maker}, which is not installed here")
    monkeypatch.setattr(symmetric_qdq, "_MAKERS", {maker: symmetric_qdq._MAKERS[maker]})
    made, notes = symmetric_qdq.quantize_symmetric(model, patches)
    symmetric_qdq.refuse_unreadable(made)
    found = sensitive_layers_of(model)
    rounded = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    fed = {
        node.name: rounded & set(node.input)
        for node in made.graph.node
        if node.op_type in {"Conv", "Add"}
    }
    floats = set(found.parts)
    assert {name for name, by in fed.items() if not by} == floats
    assert all(len(by) == 2 for name, by in fed.items() if name not in floats)  # values, weights
    assert notes == (found.note_on_floats("float"),)


def test_a_width_that_nvidia_advises_against_is_told(patches: PatchSet, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="needs nncf, which is not installed here")
    _, notes = symmetric_qdq.quantize_symmetric(wide(20, tmp_path), patches)
    assert any("20, 80 channels: TensorRT's INT8 is fastest in multiples of 32" in n for n in notes)


def test_without_a_library_that_makes_it_the_cure_is_named(
    model: Any, patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symmetric_qdq, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="int8 needs nncf") as caught:
        symmetric_qdq.quantize_symmetric(model, patches)
    assert caught.value.hint == "pip install nncf"
