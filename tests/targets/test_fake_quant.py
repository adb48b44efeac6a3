"""A net that rounds where a target's INT8 does computes what the target then computes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.sensitive_layers import sensitive_layers_in_file
from mipkd.archs.base import SRNet
from mipkd.core import plugins
from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Graph, PatchSet, QatStudent, QuantParams, QuantPlan, QuantScheme
from mipkd.export.fake_quant import FakeQuantNet
from mipkd.export.onnx import export, export_anew
from targets._onnx.unquantize import read_grids
from targets._tensorrt import symmetric_qdq
from targets.base import BuildRequest, Feature, FloatArray, Target, Tuner, find


def made(family: str) -> SRNet:
    arch = plugins.load("mipkd.archs", family, "ARCH")
    torch.manual_seed(0)
    return arch.make(arch.shrink(arch.paper(2), "c8b2")).eval()


@pytest.fixture(scope="module", params=["edsr", "rlfn", "edge", "compact", "span"])
def net(request: pytest.FixtureRequest) -> SRNet:
    return made(request.param)


@pytest.fixture(scope="module")
def graph(net: SRNet, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    out = tmp_path_factory.mktemp("graph")
    return export(net, out=out, metadata={}, role="student", family="net")


@pytest.fixture(scope="module")
def unrounded(net: SRNet) -> FakeQuantNet:
    """The net, traced, with nothing to round in it."""
    return FakeQuantNet(net, QuantScheme((), ()))


def image() -> FloatArray:
    return np.random.default_rng(1).random((1, 3, 40, 44), dtype=np.float32)


def tuner(
    target: Target, graph: Graph, patches: PatchSet, out: Path, rounding: QuantScheme | None = None
) -> Tuner:
    out.mkdir()
    found = target.tuner(BuildRequest(graph, "int8", out, patches, scheme=rounding))
    assert found is not None
    return found


def by_torch(net: SRNet) -> FloatArray:
    with torch.no_grad():
        return net(torch.from_numpy(image())).numpy()


def error(one: FloatArray, other: FloatArray) -> float:
    return float(np.mean((one - other) ** 2))


def trained(net: SRNet, rounding: QuantScheme) -> FakeQuantNet:
    """A few steps, enough to move every weight and grid."""
    student = FakeQuantNet(net, rounding).train()
    before = [p.clone() for p in student.parameters()]
    optimiser = torch.optim.Adam(student.parameters(), 1e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        lr = torch.rand(2, 3, 24, 20, generator=rng)
        with torch.no_grad():
            wanted = net(lr)
        optimiser.zero_grad()
        (student(lr) - wanted).abs().mean().backward()
        optimiser.step()
    moved = [not torch.equal(p, old) for p, old in zip(student.parameters(), before, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    return student.eval()


def test_after_training_the_target_computes_what_torch_did(
    target: Target, net: SRNet, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    before = tuner(target, graph, patches, tmp_path / "before").quant_scheme(())
    assert before.grids
    student = trained(net, before)
    learned = student.learned_rounding()
    assert [grid.zero_point for grid in learned.grids] == [grid.zero_point for grid in before.grids]
    assert [grid.scale for grid in learned.grids] != [grid.scale for grid in before.grids]
    made = export_anew(graph, student.float_net(), out=tmp_path)
    after = tuner(target, made, patches, tmp_path / "after", learned)
    assert after.quant_scheme(()).grids == tuple(
        replace(grid, scale=pytest.approx(grid.scale, rel=1e-5)) for grid in learned.grids
    )
    with closing(after.session(after.range_estimators[0], (), "fp32")) as session:
        seen = np.array(session.run(image()))
    # A value half-way between two levels may fall to either, and so may all that come of it.
    lost, expected = error(seen, by_torch(net)), error(by_torch(student), by_torch(net))
    assert lost == pytest.approx(expected, rel=0.15)
    assert error(seen, by_torch(student)) < 1.2 * expected
    plan = QuantPlan(
        target.name, "learned", "fp32", (), None, None, met=True,
        tuned=QatStudent(made, learned, tmp_path, 3, 0.0, ("logits",)),
    )  # fmt: skip
    request = BuildRequest(made, "int8", tmp_path / "built", patches, plan=plan)
    built = target.build(replace(request, scheme=plan.tuned.rounding))
    with closing(target.open(built)) as session:
        assert np.array_equal(session.run(image()), seen)


def test_what_it_was_trained_with_as_floats_stays_float(
    target: Target, net: SRNet, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    first = tuner(target, graph, patches, tmp_path / "before")
    floats = [op.name for op in first.operations() if op.part]
    rounding = first.quant_scheme(floats)
    assert set(rounding.floats) >= set(floats)  # OpenVINO leaves more of SPAN float
    assert len(rounding.grids) < len(first.quant_scheme(()).grids)
    student = FakeQuantNet(net, rounding).eval()
    made = export_anew(graph, student.float_net(), out=tmp_path)
    after = tuner(target, made, patches, tmp_path / "after", rounding)
    assert not {op.name for op in after.operations()} & set(rounding.floats)
    with closing(after.session(after.range_estimators[0], (), "fp32")) as session:
        seen = np.array(session.run(image()))
    lost, expected = error(seen, by_torch(net)), error(by_torch(student), by_torch(net))
    assert lost == pytest.approx(expected, rel=0.2)
    plan = QuantPlan(
        target.name, "learned", "fp32", (), None, None, met=True, operations=9,
        tuned=QatStudent(made, rounding, tmp_path, 3, 0.0, ("logits",)),
    )  # fmt: skip
    request = BuildRequest(made, "int8", tmp_path / "built", patches, plan=plan)
    built = target.build(replace(request, scheme=plan.tuned.rounding))
    assert f"{len(rounding.floats)} of 9 operations stay FP32" in built.notes[0]
    with closing(target.open(built)) as session:
        assert np.array_equal(session.run(image()), seen)


def test_after_training_a_fixed_recipe_computes_what_torch_did(
    net: SRNet, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    """Signed, symmetric, 16 bits beside it: the Jetson's graph, run by ONNX Runtime."""
    jetson = find("jetson")
    assert Feature.FIXED_INT8 in jetson.features
    request = BuildRequest(graph, "int8", tmp_path / "built", patches)
    before = jetson.quant_scheme(request)
    assert {grid.zero_point for grid in before.grids} == {128}
    student = trained(net, before)
    learned = student.learned_rounding()
    made = export_anew(graph, student.float_net(), out=tmp_path)
    quantized, _ = symmetric_qdq.quantize_symmetric(onnx.load(made.file), patches, learned)
    assert [grid.scale for grid in read_grids(quantized)] == pytest.approx(
        [grid.scale for grid in learned.grids], rel=1e-6
    )
    built = jetson.build(replace(request, graph=made, scheme=learned))
    with closing(jetson.open(built)) as session:
        seen = np.array(session.run(image()))
    lost, expected = error(seen, by_torch(net)), error(by_torch(student), by_torch(net))
    assert lost == pytest.approx(expected, rel=0.15)
    assert error(seen, by_torch(student)) < 1.2 * expected


def test_a_processor_that_saturates_has_weights_of_seven_bits(
    target: Target,
    patches: PatchSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if target.name == "litert":
        pytest.skip("XNNPACK's sums of products do not saturate")
    monkeypatch.setattr(f"targets.{target.name}.saturates", lambda on: True)
    net = made("edge")
    graph = export(net, out=tmp_path, metadata={}, role="student", family="net")
    found = tuner(target, graph, patches, tmp_path / "made")
    rounding = found.quant_scheme(())
    assert min(most for _, most in rounding.weights) in (63.5, 64)
    with closing(found.session(found.range_estimators[0], (), "fp32")) as session:
        seen = np.array(session.run(image()))
    rounded = by_torch(FakeQuantNet(net, rounding).eval())
    assert error(seen, rounded) < 0.05 * error(seen, by_torch(net))


def test_without_roundings_it_is_the_net(
    net: SRNet, unrounded: FakeQuantNet, graph: Graph, tmp_path: Path
) -> None:
    assert np.allclose(by_torch(unrounded), by_torch(net), atol=2e-6 * np.abs(by_torch(net)).max())
    again = export_anew(graph, unrounded.float_net(), out=tmp_path)
    assert onnx.load(again.file) == onnx.load(graph.file)


def test_the_net_that_it_was_made_of_may_be_changed() -> None:
    """As the teacher of its own training, which is placed in memory as its device likes it."""
    teacher = made("compact")
    student = FakeQuantNet(teacher, QuantScheme((), ()))
    before = {name: p.clone() for name, p in student.float_net().named_parameters()}
    teacher.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.zero_()
    after = dict(student.float_net().named_parameters())
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert [p.stride() for p in after.values()] == [p.stride() for p in before.values()]


def test_features_are_those_of_the_net(net: SRNet, unrounded: FakeQuantNet) -> None:
    last = len(net.blocks) - 1
    lr = torch.from_numpy(image())
    with torch.no_grad():
        mine, theirs = (
            unrounded.forward_with_taps(lr, (0, last))[1],
            net.to_exportable().forward_with_taps(lr, (0, last))[1],
        )
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_rounding_that_is_not_in_the_net_is_refused() -> None:
    net = made("edsr")
    with pytest.raises(UnsupportedError, match="at node_nowhere"):
        FakeQuantNet(net, QuantScheme((QuantParams((("node_nowhere", 0),), 0.1, 0),), ()))


def test_the_image_is_rounded_to_the_levels_it_has(
    target: Target, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    """Whatever the patches show, and with the mean's ones beside it."""
    head = sensitive_layers_in_file(graph.file).head[0]
    found = tuner(target, graph, patches, tmp_path / "made").quant_scheme(())
    (grid,) = [grid for grid in found.grids if (head, 0) in grid.readers]
    assert grid.scale == pytest.approx(1 / 255, rel=1e-6)
    assert grid.zero_point == 0
