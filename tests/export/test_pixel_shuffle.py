"""A transposed convolution of ones and zeros moves what DepthToSpace moves, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mipkd.core.errors import UnsupportedError
from mipkd.export.pixel_shuffle import replace_pixel_shuffle

HEIGHT, WIDTH = 5, 7


def shuffles(mode: str, side: int, channels: int | str = 0) -> Any:
    nodes = [helper.make_node("DepthToSpace", ["x"], ["y"], "shuffle", blocksize=side, mode=mode)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, "h", "w"])
        for name, count in (("x", channels or 3 * side**2), ("y", "c"))
    ]
    graph = helper.make_graph(nodes, "shuffle", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: Any, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": image})[0]


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
@pytest.mark.parametrize("side", [2, 3, 4])
def test_the_same_values_at_the_same_places(mode: str, side: int) -> None:
    model = shuffles(mode, side)
    edited = replace_pixel_shuffle(model)
    onnx.checker.check_model(edited)
    assert [node.op_type for node in edited.graph.node] == ["ConvTranspose"]
    assert [node.op_type for node in model.graph.node] == ["DepthToSpace"]
    noise = np.random.default_rng(side).standard_normal((1, 3 * side**2, HEIGHT, WIDTH))
    image = noise.astype(np.float32)
    assert np.array_equal(run(edited, image), run(model, image))


def test_channels_that_nobody_tells_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="how many channels shuffle shuffles"):
        replace_pixel_shuffle(shuffles("CRD", 2, "channels"))


def test_a_model_without_a_shuffle_stays_as_it_is(tmp_path: Path) -> None:
    model = shuffles("CRD", 2)
    model.graph.node[0].op_type = "Identity"
    del model.graph.node[0].attribute[:]
    assert replace_pixel_shuffle(model) == model
