"""Small foreign graphs, as people's exporters of all ages write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


def node(kind: str, reads: str, makes: str, **facts: Any) -> onnx.NodeProto:
    """A node; tensors are separated by blanks."""
    return helper.make_node(kind, reads.split(), makes.split(), **facts)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    arrays: Mapping[str, Array],
    *,
    opset: int = 17,
    ir: int = 8,
    kind: int = TensorProto.FLOAT,
    size: Sequence[Any] = ("h", "w"),
    weights_are_inputs: bool = False,
) -> Path:
    """A graph from "lr" to "sr"."""
    ends = [
        helper.make_tensor_value_info("lr", kind, [1, 3, *size]),
        helper.make_tensor_value_info("sr", kind, ["n", "c", "out h", "out w"]),
    ]
    held = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    given = ends[:1]
    if weights_are_inputs:
        given += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in held]
    graph = helper.make_graph(list(nodes), "g", given, ends[1:], held)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir), path)
    return path


def repeat_weight(dtype: Any = np.float32) -> Array:
    """A 1x1 convolution's that, before a shuffle, repeats each pixel twice a side."""
    weight = np.zeros((12, 3, 1, 1), dtype)
    for channel in range(3):
        weight[channel::3, channel] = 1
    return weight


def doubled(made: str) -> list[onnx.NodeProto]:
    """Nodes that give "sr", twice as large, from the tensor `made`."""
    wide = node("Conv", f"{made} wide", "wide_out", name="wide")
    return [wide, node("DepthToSpace", "wide_out", "sr", blocksize=2)]


def half_inside(
    path: Path, dtype: Any = np.float16, *, ends: bool = False, constant: bool = False
) -> Path:
    """Five convolutions of 16 channels in a 16-bit or 64-bit float, with float32 ends or not."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng, nodes, arrays = np.random.default_rng(0), [], dict[str, Array]()
    made = "lr"
    if not ends:
        nodes.append(node("Cast", "lr", "x", to=kind))
        made = "x"
    for i in range(5):
        weight = rng.normal(0, 0.02, (16, 16 if i else 3, 3, 3)).astype(np.float32)
        weight[:3] = 0
        weight[range(3), range(3), 1, 1] = 1
        if constant and i == 2:
            tensor = numpy_helper.from_array(weight.astype(dtype))
            nodes.append(node("Constant", "", f"w{i}", value=tensor))
        else:
            arrays[f"w{i}"] = weight.astype(dtype)
        nodes.append(node("Conv", f"{made} w{i}", f"c{i}", name=f"conv{i}", pads=[1] * 4))
        nodes.append(node("Relu", f"c{i}", f"r{i}", name=f"relu{i}"))
        made = f"r{i}"
    wide = np.zeros((12, 16, 1, 1), np.float32)
    wide[:, :3] = repeat_weight()
    arrays["wide"] = wide.astype(dtype)
    nodes += doubled(made)
    if not ends:
        nodes[-1].output[0] = "half"
        nodes.append(node("Cast", "half", "sr", to=TensorProto.FLOAT))
    return save(path, nodes, arrays, kind=kind if ends else TensorProto.FLOAT)


def deconvolution(path: Path) -> Path:
    """FSRCNN's tail: Conv, PRelu, ConvTranspose; exactly bilinear x2."""
    first, ramp = np.zeros((6, 3, 5, 5), np.float32), np.array([0.25, 0.75, 0.75, 0.25])
    last = np.zeros((6, 3, 4, 4), np.float32)
    for c in range(3):
        first[c, c, 2, 2], first[3 + c, c, 2, 2] = 1, -1
        last[c, c] = np.outer(ramp, ramp) / 1.25
        last[3 + c, c] = -last[c, c]
    slope = np.full((6, 1, 1), 0.25, np.float32)
    nodes = [
        node("Conv", "lr first", "a", name="conv", pads=[2] * 4),
        node("PRelu", "a slope", "p", name="prelu"),
        node("ConvTranspose", "p last bias", "sr", name="up", strides=[2, 2], pads=[1] * 4),
    ]
    bias = np.zeros(3, np.float32)
    return save(path, nodes, {"first": first, "slope": slope, "last": last, "bias": bias})


def fsrcnn(path: Path) -> Path:
    """FSRCNN of few channels, with random weights: Conv and PRelu, then ConvTranspose."""
    rng, nodes, arrays = np.random.default_rng(0), [], dict[str, Array]()
    made, read = "lr", 3
    for i, (written, side) in enumerate(((16, 5), (8, 1), (8, 3), (8, 3), (16, 1))):
        spread = (2 / (read * side**2)) ** 0.5
        weight = rng.normal(0, spread, (written, read, side, side)).astype(np.float32)
        arrays |= {f"w{i}": weight, f"s{i}": np.full((written, 1, 1), 0.25, np.float32)}
        pads = [side // 2] * 4
        nodes.append(node("Conv", f"{made} w{i}", f"c{i}", name=f"conv{i}", pads=pads))
        nodes.append(node("PRelu", f"c{i} s{i}", f"p{i}", name=f"prelu{i}"))
        made, read = f"p{i}", written
    arrays["up"] = rng.normal(0, 0.05, (16, 3, 9, 9)).astype(np.float32)
    sizes = {"strides": [2, 2], "pads": [4] * 4, "output_padding": [1, 1]}
    nodes.append(node("ConvTranspose", f"{made} up", "sr", name="up", **sizes))
    return save(path, nodes, arrays)


def branching(path: Path, factor: Array | None = None) -> Path:
    """Large images take one branch of an If, others another; both read what is outside them."""
    info = helper.make_empty_tensor_value_info
    factor = np.full((3, 1, 1), 0.5, np.float32) if factor is None else factor
    held = [numpy_helper.from_array(factor.astype(np.float32), "factor")]
    if_large = [node("Mul", "lr factor", "scaled"), node("Add", "scaled a", "large")]
    branches = {
        "then_branch": helper.make_graph(if_large, "then", [], [info("large")], held),
        "else_branch": helper.make_graph(
            [node("Mul", "lr a", "small")], "else", [], [info("small")]
        ),
    }
    nodes = [
        node("Conv", "lr first", "a", name="first"),
        node("Shape", "lr", "shape"),
        node("Gather", "shape two", "height", axis=0),
        node("Greater", "height limit", "is_large"),
        node("If", "is_large", "x", name="if", **branches),
        node("Conv", "x second", "y", name="second"),
        *doubled("y"),
    ]
    eye = np.eye(3, dtype=np.float32)[..., None, None]
    arrays = {"first": eye * np.float32(0.5), "second": eye, "wide": repeat_weight()}
    return save(path, nodes, arrays | {"two": np.array(2), "limit": np.array(16)})


def with_function(path: Path) -> Path:
    """A graph whose first node is a function of its own, which rounds to float16."""
    body = [
        node("Cast", "f_in", "f_half", to=TensorProto.FLOAT16),
        node("Mul", "f_half f_half", "f_square"),
        node("Cast", "f_square", "f_out", to=TensorProto.FLOAT),
    ]
    opsets = [helper.make_opsetid("", 17)]
    square = helper.make_function("own", "Square", ["f_in"], ["f_out"], body, opsets)
    nodes = [node("Square", "lr", "x", domain="own"), *doubled("x")]
    model = onnx.load(save(path, nodes, {"wide": repeat_weight()}))
    model.functions.append(square)
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    return path
