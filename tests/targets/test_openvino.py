"""What OpenVINO does on its own unless it is told otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mipkd.core.records import Graph
from targets.openvino import TARGET

pytestmark = pytest.mark.skipif(bool(TARGET.why_not()), reason=TARGET.why_not() or "-")
ROOT = Path(__file__).resolve().parents[2]
THIRD = np.float32(1 / 3)  # neither BF16 nor FP16 holds it


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """Three convolutions that multiply by a third, then a shuffle to twice the size."""
    weight = np.zeros((3, 3, 3, 3), np.float32)
    weight[range(3), range(3), 1, 1] = THIRD
    wide = np.zeros((12, 3, 1, 1), np.float32)
    for c in range(3):
        wide[4 * c : 4 * c + 4, c] = 1
    values = {"weight": weight, "wide": wide}
    nodes = [
        helper.make_node("Conv", ["lr", "weight"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "weight"], ["b"], "middle", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "wide"], ["c"], "last"),
        helper.make_node("DepthToSpace", ["c"], ["sr"], "shuffle", blocksize=2, mode="CRD"),
    ]
    shape = [1, 3, "height", "width"]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "thirds",
            [helper.make_tensor_value_info("lr", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("sr", TensorProto.FLOAT, [1, 3, "h", "w"])],
            [numpy_helper.from_array(v, k) for k, v in values.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    file = tmp_path / "model.onnx"
    onnx.save(model, file)
    return Graph(file, "", "student", scale=2, multiple=1, opset=20, family="edsr")


def test_fp32_is_computed_in_fp32_and_keeps_fp32_weights(graph: Graph, tmp_path: Path) -> None:
    built = TARGET.build(graph, "fp32", None, tmp_path / "out")
    assert built.options["INFERENCE_PRECISION_HINT"] == "f32"
    lr = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
    with closing(TARGET.open(built)) as session:
        found = session.run(lr)[0, :, ::2, ::2]
    np.testing.assert_allclose(found, lr[0] * THIRD * THIRD, rtol=2e-6)


def test_a_machine_without_openvino_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets._ov.version_of", lambda package: "")
    assert 'pip install "mipkd-pipeline[openvino]"' in TARGET.why_not()


def test_converting_and_quantising_report_nothing_to_anybody(graph: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "patches.npy", np.zeros((2, 16, 16, 3), np.uint8) + 90)
    code = f"""
import warnings
warnings.simplefilter("ignore")
from pathlib import Path
from mipkd.core.records import Graph, PatchSet
from targets.openvino import TARGET
graph = Graph(Path({str(graph.file)!r}), "", "student", 2, 1, 20, "edsr")
TARGET.build(graph, "int8", PatchSet(Path("patches.npy"), "", "", 2, (16, 16)), Path("out"))
"""
    home = tmp_path / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert list(home.rglob("*ga_cid*")) == []  # the identity that reports would carry
