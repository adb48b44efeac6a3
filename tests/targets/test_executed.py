"""What a compiled model computes in is read back, and told where it is not what was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Graph, Host, PatchSet, TargetInfo
from targets._onnxruntime.session import count_kernels
from targets.base import BuildRequest, Target, find
from targets.null import Null


def usable(name: str) -> Target:
    target = find(name)
    if reason := target.why_not():
        pytest.skip(reason)
    return target


@pytest.mark.parametrize("name", ["cpu", "openvino", "openvino:throughput"])
def test_each_precision_that_is_offered_is_the_one_that_runs(
    name: str, thirds: Graph, noise: PatchSet, tmp_path: Path
) -> None:
    target = usable(name)
    for precision in target.precisions():
        built = target.build(BuildRequest(thirds, precision, tmp_path / precision, noise))
        assert (built.precision, built.executes) == (precision, precision)
        assert not any("executes" in note for note in built.notes)


def test_openvino_says_that_a_cpu_runs_fp16_in_something_else(
    thirds: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = usable("openvino")
    if "fp16" in target.precisions():
        pytest.skip("this CPU computes FP16 natively")
    monkeypatch.setattr(type(target), "precisions", lambda self: ("fp32", "fp16"))
    built = target.build(BuildRequest(thirds, "fp16", tmp_path / "out"))
    assert built.precision == "fp16"
    assert built.executes in ("bf16", "fp32")
    assert f"asked for fp16, the runtime executes {built.executes}" in built.notes


def test_a_model_without_8_bit_kernels_does_not_pass_for_int8(
    thirds: Graph, noise: PatchSet, tmp_path: Path
) -> None:
    """Q/DQ around what ONNX Runtime cannot compute in INT8 is no INT8."""
    built = usable("cpu").build(BuildRequest(thirds, "int8", tmp_path / "out", noise))
    model = onnx.load(built.file)
    assert count_kernels(built.file, {}, 1) == {"fp32": 1, "int8": 2}
    floats = [n for n in model.graph.node if n.op_type in ("Conv", "DepthToSpace")]
    for node in floats:  # what rounds its results is gone: nothing can be fused
        node.input[0] = {"first": "lr", "middle": "a", "last": "b"}.get(node.name, "c")
        node.output[0] = {"first": "a", "middle": "b", "last": "c"}.get(node.name, "sr")
    weights = {name for node in floats for name in node.input}
    kept = [n for n in model.graph.node if n in floats or n.output[0] in weights]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "floats.onnx")
    assert count_kernels(tmp_path / "floats.onnx", {}, 1) == {"fp32": 3}


def test_for_another_machine_nothing_is_claimed(
    thirds: Graph, noise: PatchSet, tmp_path: Path
) -> None:
    host = Host("there", "another CPU", 4, 2**33, "Linux 6.8 x86_64")
    on = TargetInfo("cpu", "", False, ("fp32", "int8"), {}, host)
    built = usable("cpu").build(BuildRequest(thirds, "int8", tmp_path / "out", noise, on=on))
    assert built.executes == ""
    here = replace(on, local=True)
    request = BuildRequest(thirds, "int8", tmp_path / "here", noise, on=here)
    assert usable("cpu").build(request).executes == "int8"


def test_a_graph_that_overflows_fp16_is_bf16_by_its_own_account(
    thirds: Graph, noise: PatchSet, tmp_path: Path
) -> None:
    model = onnx.load(thirds.file)
    (weight,) = [t for t in model.graph.initializer if t.name == "weight"]
    values = onnx.numpy_helper.to_array(weight) * 900
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "weight"))
    onnx.save(model, tmp_path / "bright.onnx")
    bright = replace(thirds, file=tmp_path / "bright.onnx")
    built = usable("jetson").build(BuildRequest(bright, "fp16", tmp_path / "out", noise))
    assert (built.precision, built.executes) == ("fp16", "bf16")
    assert "asked for fp16, the runtime executes bf16" in built.notes
    assert any(note.startswith("BF16, not FP16: ") for note in built.notes)


@pytest.mark.parametrize("name", ["cpu", "openvino", "jetson", "litert"])
def test_a_graph_of_which_nothing_can_be_quantised_is_refused(
    name: str, thirds: Graph, noise: PatchSet, tmp_path: Path
) -> None:
    """One convolution is the first and the last: all of it stays float."""
    target = usable(name)
    model = onnx.load(thirds.file)
    kept = [node for node in model.graph.node if node.name in ("last", "shuffle")]
    kept[0].input[0] = "lr"
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, tmp_path / "one.onnx")
    graph = replace(thirds, file=tmp_path / "one.onnx")
    with pytest.raises(UnsupportedError, match="int8: nothing to quantise") as caught:
        target.build(BuildRequest(graph, "int8", tmp_path / "out", noise))
    assert caught.value.hint == "build the model in a float precision: --precision"


def test_a_runtime_that_cannot_tell_leaves_it_open(thirds: Graph, tmp_path: Path) -> None:
    built = Null().build(BuildRequest(thirds, "fp32", tmp_path / "out"))
    assert built.executes == ""
    assert built.notes == ()
