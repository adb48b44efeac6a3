"""A graph so small that its pixels can be told by heart; the targets whose INT8 is searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mipkd.core import plugins
from mipkd.core.records import Graph, PatchSet
from targets.base import Feature, Target, find

THIRD = np.float32(1 / 3)  # neither BF16 nor FP16 holds it


@pytest.fixture
def thirds(tmp_path: Path) -> Graph:
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


@pytest.fixture
def noise(tmp_path: Path) -> PatchSet:
    """Four patches to calibrate with."""
    values = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "noise.npy", values)
    return PatchSet(tmp_path / "noise.npy", "", "noise", count=4, size=(16, 16))


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    """Patches of noise large enough for every family."""
    file = tmp_path_factory.mktemp("patches") / "patches.npy"
    np.save(file, np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8))
    return PatchSet(file=file, sha256="", source="noise", count=4, size=(40, 40))


@pytest.fixture(
    scope="session",
    params=[
        name for name in plugins.names("targets") if Feature.FLOAT_SEARCH in find(name).features
    ],
)
def target(request: pytest.FixtureRequest) -> Target:
    """Each target that can search for its float layers, where it runs."""
    found = find(request.param)
    if reason := found.why_not():
        pytest.skip(reason)
    return found
