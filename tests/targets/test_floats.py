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

from calibration import floats as edits
from mipkd.core import plugins
from mipkd.core.errors import UnsupportedError
from mipkd.core.records import FloatLayer, Graph, PatchSet, QuantPlan
from mipkd.export.onnx import export
from targets.base import FloatArray, Target, Tuner, find, tuner_of


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
    tuner = tuner_of(target, graph, patches, out)
    assert tuner is not None
    return tuner


def pixels(tuner: Tuner, floats: Sequence[str]) -> FloatArray:
    with closing(tuner.session(tuner.ranges[0], floats, tuner.rests[-1])) as session:
        return np.array(session.run(image()))


def error(one: FloatArray, other: FloatArray) -> float:
    return float(np.mean((one - other) ** 2))


def test_with_all_operations_float_nothing_of_int8_is_left(
    tuner: Tuner, target: Target, graph: Graph, tmp_path: Path
) -> None:
    names = [op.name for op in tuner.operations()]
    precision = "fp32" if target.name == "cpu" else target.precisions()[-2]
    with closing(target.open(target.build(graph, precision, None, tmp_path))) as session:
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
        if op.kind != "Add":  # between convolutions in INT8 a sum has nothing unrounded to add
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
        ranges=tuner.ranges[0],
        rest=tuner.rests[-1],
        floats=tuple(FloatLayer(name, "Conv", 0.0, 0.0, "a test") for name in chosen),
        drop_db=None,
        worst_db=None,
        met=True,
        operations=len(tuner.operations()),
    )
    built = target.build(graph, "int8", patches, tmp_path, plan=plan)  # type: ignore[call-arg]
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
    again = find("cpu").build(graph, "int8", patches, tmp_path / "int8")
    assert edits.is_quantized(onnx.load(again.file))
    twice = replace(graph, file=again.file)
    with pytest.raises(UnsupportedError, match="quantised already"):
        target.build(twice, "int8", patches, tmp_path / "twice")
