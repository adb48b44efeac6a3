"""What runs is read from the runtime, counted, named in the report, and decides what is shipped."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mipkd.core.evidence import Outcome
from mipkd.core.measurement import ImageScore, Latency, Measurement
from mipkd.core.records import Built, Graph, PatchSet
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import time_models
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge
from pipeline.report.figures import compute_figures
from pipeline.report.results_file import read_results, write_results
from pipeline.report.tables import cost_table
from pipeline.report.wording import kernels, precision_label
from targets._onnxruntime import session
from targets.base import BuildRequest, Target, find

PACE = BenchSettings(sizes=((16, 16),), min_time_s=0.01, warmup_s=0.0, max_drift=9, max_busy=1)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Five convolutions, the first and the last of which INT8 leaves float."""
    rng, nodes, weights = np.random.default_rng(0), [], []
    widths = (3, 8, 8, 8, 8, 12)
    for at, (from_, to) in enumerate(pairwise(widths)):
        weight = rng.standard_normal((to, from_, 3, 3)).astype(np.float32) / 9
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        nodes.append(
            helper.make_node("Conv", [f"c{at}", f"w{at}"], [f"r{at}"], f"c{at}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"r{at}"], [f"c{at + 1}"], f"relu{at}"))
    nodes[-1] = helper.make_node("DepthToSpace", ["r4"], ["sr"], "shuffle", blocksize=2, mode="CRD")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, *sides])
        for name, sides in (("c0", ("h", "w")), ("sr", ("H", "W")))
    ]
    made = helper.make_graph(nodes, "five", values[:1], values[1:], weights)
    file = tmp_path_factory.mktemp("graph") / "model.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=10), file)
    return Graph(file, "", "student", scale=2, multiple=1, opset=20, family="onnx")


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    file = tmp_path_factory.mktemp("patches") / "noise.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    return PatchSet(file, "", "noise", count=4, size=(16, 16))


def usable(name: str) -> Target:
    target = find(name)
    if reason := target.why_not():
        pytest.skip(reason)
    return target


def built(target: Target, precision: str, graph: Graph, patches: PatchSet, out: Path) -> Built:
    return target.build(BuildRequest(graph, precision, out / precision, patches))


@pytest.mark.parametrize("name", ["cpu", "openvino", "openvino:throughput"])
def test_every_convolution_is_counted_where_it_is_timed(
    name: str, graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    target = usable(name)
    models = [built(target, p, graph, patches, tmp_path) for p in target.precisions()]
    for made, m in zip(models, time_models(target, models, PACE), strict=True):
        assert sum(m.kernels.values()) == 5, m.kernels
        assert m.executes == made.executes == m.precision
        assert m.kernels[m.precision] >= (1 if m.precision == "int8" else 5)
        assert kernels(m).startswith(f"{m.kernels[m.precision]} of 5 in {m.precision}")


def test_onnx_runtime_that_keeps_q_and_dq_apart_runs_floats(
    graph: Graph, patches: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = usable("cpu")
    # No model may bring this option; here it stands for a runtime that does not fuse.
    monkeypatch.setitem(session.OPTIONS, "session.disable_quant_qdq", "1")
    model = built(target, "int8", graph, patches, tmp_path)
    unfused = replace(model, options={**model.options, "session.disable_quant_qdq": "1"})
    for made, runs_in_float in ((model, False), (unfused, True)):
        (m,) = time_models(target, [made], PACE)
        assert m.precision == "int8"
        assert m.runs_in_float == runs_in_float
    assert m.kernels == {"fp32": 5}
    assert precision_label(m) == "fp32 (asked: int8)"


def test_openvino_counts_what_a_graph_leaves_it_no_8_bit_kernel_for(
    graph: Graph, patches: PatchSet, tmp_path: Path
) -> None:
    """FakeQuantize of 65536 levels stays in the graph, and floats run."""
    target = usable("openvino")
    model = built(target, "int8", graph, patches, tmp_path)
    (m,) = time_models(target, [model], PACE)
    assert m.kernels["int8"] >= 1
    text = model.file.read_text()
    assert 'levels="256"' in text
    for levels in ("255", "256"):
        text = text.replace(f'levels="{levels}"', 'levels="65536"')
    model.file.write_text(text)
    (m,) = time_models(target, [model], PACE)
    assert sum(m.kernels.values()) == 5
    assert m.executes != "int8"
    assert m.runs_in_float


def measured(precision: str, ms: float, db: float, **kernels: int) -> Measurement:
    samples = tuple(ms * 1e-3 * (1 + 1e-3 * (n % 7)) for n in range(40))
    scores = tuple(ImageScore(name, {"psnr_y": db}) for name in "abcde")
    latency = Latency((16, 16), samples, warmup=1, cold_start_s=0.1)
    role = {"role": "student", "target": "openvino", "precision": precision}
    return Measurement(**role, latencies=(latency,), scores=scores, kernels=kernels)  # type: ignore[arg-type]


def recommended(*on: Measurement) -> tuple[str, str, tuple[str, ...]]:
    reference = replace(measured("fp32", 1, 32.0), target="reference", latencies=())
    bounds: dict[str, Any] = {"min_gain_over_bicubic_db": "off", "min_speedup_over_teacher": "off"}
    found = judge(GateConfig(**bounds), [reference, *on], ())
    assert found.outcome in (Outcome.PASS, Outcome.INVALID)
    (one,) = found.recommended
    return one.precision, one.reason, found.remarks


def test_what_runs_in_float_is_not_recommended_as_int8() -> None:
    fp32 = measured("fp32", 9.0, 32.0, fp32=13)
    precision, _, remarks = recommended(fp32, measured("int8", 3.0, 31.99, int8=11, bf16=2))
    assert (precision, remarks) == ("int8", ())
    floats = measured("int8", 3.0, 31.99, fp32=13)
    precision, _, remarks = recommended(fp32, floats)
    assert precision == "fp32"
    assert "openvino: asked for int8, the runtime executes fp32: it is not recommended" in remarks
    precision, reason, _ = recommended(floats)
    assert (precision, "int8 runs in fp32" in reason) == ("", True)
    untold = measured("int8", 3.0, 31.99)  # a runtime that does not tell claims nothing
    assert recommended(fp32, untold)[0] == "int8"


def test_the_words_for_a_row() -> None:
    mixed = measured("int8", 3.0, 32.0, int8=11, bf16=2)
    assert kernels(mixed) == "11 of 13 in int8, 2 in bf16"
    assert precision_label(mixed) == "int8"
    assert kernels(measured("int8", 3.0, 32.0, fp32=13)) == "13 of 13 in fp32"
    assert kernels(measured("int8", 3.0, 32.0)) == "–"
    assert precision_label(measured("fp16", 3.0, 32.0, bf16=13)) == "bf16 (asked: fp16)"


def test_the_report_names_what_runs_and_how_much_of_it(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "pipeline" / "golden" / "results-1.6.json"
    evidence = read_results(golden)
    asked = [m for m in evidence.measurements if (m.role, m.precision) == ("student", "int8")]
    told = tuple(
        replace(m, kernels={"fp32": 12, "bf16": 1} if m == asked[0] else {})
        for m in evidence.measurements
    )
    evidence = replace(evidence, measurements=told)
    figures = compute_figures(evidence)
    (found,) = (f for f in figures.models if f.executes != f.precision)
    assert (found.precision, found.executes, found.share_as_asked) == ("int8", "fp32", 0.0)
    table = cost_table(evidence, figures)
    assert table.head[2] == "Convolutions run"
    (row,) = (row.cells for row in table.rows if "asked" in row.cells[1])
    assert row[:3] == [asked[0].target, "student fp32 (asked: int8)", "12 of 13 in fp32, 1 in bf16"]
    write_results(evidence, figures, tmp_path / "results.json", tmp_path)
    again = read_results(tmp_path / "results.json")
    assert [m.kernels for m in again.measurements] == [m.kernels for m in told]
