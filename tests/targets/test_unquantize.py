"""Operations of a quantised graph go back to floats, one by one, and all of them to FP32."""

from __future__ import annotations

from collections.abc import Sequence
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
from mipkd.core.records import FloatLayer, Graph, PatchSet, QuantPlan
from mipkd.export.onnx import export
from targets._onnx import unquantize
from targets.base import BuildRequest, FloatArray, Target, Tuner, find


@pytest.fixture(scope="module", params=["edsr:c8b2", "rlfn:c8b2"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    family, size = request.param.split(":")
    arch = plugins.load("mipkd.archs", family, "ARCH")
    torch.manual_seed(0)
    net = arch.make(arch.shrink(arch.paper(2), size)).eval()
    out = tmp_path_factory.mktemp("graph")
    return export(net, out=out, metadata={}, role="student", family=family)


def image(seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).random((1, 3, 40, 40), dtype=np.float32)


@pytest.fixture(scope="module")
def tuner(
    target: Target, graph: Graph, patches: PatchSet, tmp_path_factory: pytest.TempPathFactory
) -> Tuner:
    """Of the graph on the target: what it has quantised for one test it keeps for the next."""
    return tuned(target, graph, patches, tmp_path_factory.mktemp("tuner"))


def tuned(target: Target, graph: Graph, patches: PatchSet, out: Path) -> Tuner:
    out.mkdir(exist_ok=True)
    tuner = target.tuner(BuildRequest(graph, "int8", out, patches))
    assert tuner is not None
    return tuner


def pixels(tuner: Tuner, floats: Sequence[str]) -> FloatArray:
    with closing(
        tuner.session(tuner.range_estimators[0], floats, tuner.other_precisions[-1])
    ) as session:
        return np.array(session.run(image()))


def error(one: FloatArray, other: FloatArray) -> float:
    return float(np.mean((one - other) ** 2))


def test_with_all_operations_float_nothing_of_int8_is_left(
    tuner: Tuner, target: Target, graph: Graph, tmp_path: Path
) -> None:
    names = [op.name for op in tuner.operations()]
    precision = "fp32" if target.name == "cpu" else target.precisions()[-2]
    with closing(target.open(target.build(BuildRequest(graph, precision, tmp_path)))) as session:
        plain = np.array(session.run(image()))
    bound = {"fp32": 1e-10, "bf16": 1e-5, "fp16": 1e-6}[precision]
    assert error(pixels(tuner, names), plain) < bound
    assert error(pixels(tuner, []), plain) > 2 * error(pixels(tuner, names), plain)


def test_each_float_operation_changes_the_pixels(tuner: Tuner) -> None:
    operations = tuner.operations()
    assert len({op.name for op in operations}) == len(operations)
    every = pixels(tuner, [])
    assert {"first convolution", "last convolution"} <= {op.part for op in operations}
    for op in operations:
        # Between convolutions in INT8 a sum or product has nothing unrounded to work with.
        if op.kind not in ("Add", "Mul"):
            assert error(pixels(tuner, [op.name]), every) > 0, op.name


def test_names_are_those_of_the_onnx_file(tuner: Tuner, graph: Graph) -> None:
    known = {node.name for node in onnx.load(graph.file).graph.node}
    assert {op.name for op in tuner.operations()} <= known


def test_a_build_by_a_plan_gives_the_candidates_pixels(
    tuner: Tuner, target: Target, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    chosen = [op.name for op in tuner.operations() if op.part]
    plan = QuantPlan(
        target=target.name,
        ranges=tuner.range_estimators[0],
        rest=tuner.other_precisions[-1],
        floats=tuple(FloatLayer(name, "Conv", 0.0, 0.0, "a test") for name in chosen),
        drop_db=None,
        worst_db=None,
        met=True,
        operations=len(tuner.operations()),
    )
    built = target.build(BuildRequest(graph, "int8", tmp_path, patches, plan=plan))
    assert f"{len(chosen)} of {plan.operations} operations stay" in built.notes[0]
    with closing(target.open(built)) as session:
        assert np.array_equal(session.run(image()), pixels(tuner, chosen))


def test_an_interrupted_tuner_goes_on_with_what_it_has_quantised(
    target: Target, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    first = pixels(tuned(target, graph, patches, tmp_path / "t"), [])
    lost = replace(patches, file=tmp_path / "gone.npy")
    assert np.array_equal(pixels(tuned(target, graph, lost, tmp_path / "t"), []), first)


def test_a_graph_that_is_quantised_already_is_refused(
    target: Target, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    again = find("cpu").build(BuildRequest(graph, "int8", tmp_path / "int8", patches))
    assert unquantize.is_quantized(onnx.load(again.file))
    twice = replace(graph, file=again.file)
    with pytest.raises(UnsupportedError, match="quantised already"):
        target.build(BuildRequest(twice, "int8", tmp_path / "twice", patches))


def normed(file: Path) -> None:
    """A graph with a normalisation, which OpenVINO fuses into an operation of its own."""
    rng = np.random.default_rng(0)
    values = {
        "w1": rng.normal(0, 0.2, (8, 3, 3, 3)),
        "w2": rng.normal(0, 0.2, (3, 8, 3, 3)),
        "epsilon": np.array(1e-5),
    }
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["lr", "w1"], ["a"], "first", pads=pads),
        helper.make_node("ReduceMean", ["a", "sides"], ["mean"], "mean"),
        helper.make_node("Sub", ["a", "mean"], ["centred"], "centred"),
        helper.make_node("Mul", ["centred", "centred"], ["square"], "square"),
        helper.make_node("ReduceMean", ["square", "sides"], ["power"], "power"),
        helper.make_node("Add", ["power", "epsilon"], ["more"], "more"),
        helper.make_node("Sqrt", ["more"], ["size"], "size"),
        helper.make_node("Div", ["centred", "size"], ["b"], "normed"),
        helper.make_node("Conv", ["b", "w2"], ["sr"], "last", pads=pads),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"])
        for name in ("lr", "sr")
    ]
    stored = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items()]
    stored.append(numpy_helper.from_array(np.array([2, 3]), "sides"))
    graph = helper.make_graph(nodes, "normed", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)


def test_what_a_converter_fuses_is_found_again_by_its_name(
    patches: PatchSet, tmp_path: Path
) -> None:
    """A plan names operations; the model that is built is converted anew, in any process."""
    openvino = pytest.importorskip("openvino")
    from targets._openvino.fake_quantize import name_as_in, name_of

    file = tmp_path / "normed.onnx"
    normed(file)
    names = []
    for _ in range(2):
        model = openvino.convert_model(str(file))
        name_as_in(model, file)
        names.append([op.get_friendly_name() for op in model.get_ordered_ops()])
        kinds = {name_of(op): op.get_type_name() for op in model.get_ordered_ops()}
    assert "MVN" in kinds.values()
    mine = [[n for n in found if not n.startswith("Constant")] for found in names]
    assert mine[0] == mine[1]
    graph = Graph(file, "", "student", scale=1, multiple=1, opset=20, family="onnx")
    target = find("openvino")
    tuner = target.tuner(BuildRequest(graph, "int8", tmp_path, patches))
    assert tuner is not None
    floats = [op.name for op in tuner.operations()][1::2]
    layers = tuple(FloatLayer(name, "", 0.0, 0.0, "") for name in floats)
    estimator, other = tuner.range_estimators[0], tuner.other_precisions[0]
    plan = QuantPlan("openvino", estimator, other, layers, 0.0, 0.0, met=True)
    built = target.build(BuildRequest(graph, "int8", tmp_path / "built", patches, plan=plan))
    with (
        closing(tuner.session(estimator, floats, other)) as searched,
        closing(target.open(built)) as shipped,
    ):
        assert np.allclose(searched.run(image()), shipped.run(image()), atol=1e-5)


def test_a_float_that_is_no_operation_is_refused(tuner: Tuner) -> None:
    with pytest.raises(StageError, match="no operation nowhere"):
        tuner.session(tuner.range_estimators[0], ["nowhere"], tuner.other_precisions[0])
