"""Graphs that a stranger may hand over to stop or fill the machine: each gives a picture twice as
large, if it ever ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from graph_makers import Array, doubled, node, repeat_weight, save
from hostile_checkpoints import HUGE, Maker
from onnx import TensorProto, helper, numpy_helper


def _graph(
    folder: Path, name: str, nodes: list[onnx.NodeProto], arrays: dict[str, Array] | None = None
) -> Path:
    """A graph whose nodes give "same" from "lr"; then it is doubled."""
    arrays = {"wide": repeat_weight(), **(arrays or {})}
    return save(folder / f"{name}.onnx", [*nodes, *doubled("same")], arrays)


def good_graph(folder: Path) -> Path:
    """What the others would be without their harm."""
    return _graph(folder, "good_graph", [node("Identity", "lr", "same")])


def endless_loop(folder: Path) -> Path:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "c", "c2"), node("Identity", "v", "v2")],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("c", TensorProto.BOOL, []),
            value("v", TensorProto.FLOAT, None),
        ],
        [value("c2", TensorProto.BOOL, []), value("v2", TensorProto.FLOAT, None)],
    )
    arrays = {"trips": np.array(2**62, np.int64), "go": np.array(True)}
    return _graph(folder, "endless_loop", [node("Loop", "trips go lr", "same", body=body)], arrays)


def endless_scan(folder: Path) -> Path:
    """A Scan over 10^9 rows, that are made when it runs."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "v", "v2"), node("Identity", "x", "y")],
        "body",
        [value("v", TensorProto.FLOAT, None), value("x", TensorProto.UINT8, None)],
        [value("v2", TensorProto.FLOAT, None), value("y", TensorProto.UINT8, None)],
    )
    zero = numpy_helper.from_array(np.zeros(1, np.uint8))
    nodes = [
        node("ConstantOfShape", "rows", "many", value=zero),
        node("Scan", "lr many", "same ys", body=body, num_scan_inputs=1),
    ]
    return _graph(folder, "endless_scan", nodes, {"rows": np.array([500_000_000, 1], np.int64)})


def _spread(folder: Path, name: str, nodes: list[onnx.NodeProto], arrays: Any) -> Path:
    """Nodes that give a tensor "much" of which a single number is added to the image."""
    more = [node("ReduceMax", "much", "one", keepdims=0), node("Mul", "one zero", "nothing")]
    more += [node("Add", "lr nothing", "same")]
    return _graph(folder, name, [*nodes, *more], {"zero": np.zeros((), np.float32), **arrays})


def constant_of_shape(folder: Path) -> Path:
    one = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [node("ConstantOfShape", "shape", "much", value=one)]
    return _spread(
        folder, "constant_of_shape", nodes, {"shape": np.array([HUGE, HUGE * 3], np.int64)}
    )


def expand(folder: Path) -> Path:
    nodes = [node("ReduceMax", "lr", "a", keepdims=0), node("Expand", "a shape", "much")]
    return _spread(folder, "expand", nodes, {"shape": np.array([HUGE, HUGE * 3], np.int64)})


def tile(folder: Path) -> Path:
    nodes = [node("Tile", "lr times", "much")]
    return _spread(folder, "tile", nodes, {"times": np.array([1, 1, 9000, 9000], np.int64)})


def resize(folder: Path) -> Path:
    nodes = [node("Resize", "lr  times", "much", mode="nearest")]
    return _spread(folder, "resize", nodes, {"times": np.array([1, 1, 3000, 3000], np.float32)})


def pad(folder: Path) -> Path:
    nodes = [node("Pad", "lr pads", "much")]
    pads = np.array([0, 0, HUGE, HUGE, 0, 0, HUGE, HUGE], np.int64)
    return _spread(folder, "pad", nodes, {"pads": pads})


def pad_where_it_runs(folder: Path) -> Path:
    """By how much is told by the image's size, so that nothing can be computed before."""
    nodes = [node("Shape", "lr", "size"), node("Mul", "size much_more", "pads4")]
    nodes += [node("Concat", "pads4 pads4", "pads", axis=0), node("Pad", "lr pads", "much")]
    return _spread(
        folder, "pad_where_it_runs", nodes, {"much_more": np.array([0, 0, 3000, 3000], np.int64)}
    )


def range_of(folder: Path) -> Path:
    nodes = [node("Range", "a b c", "much")]
    ends = {"a": 0, "b": 6e10, "c": 1}
    return _spread(
        folder,
        "range_of",
        nodes,
        {k: np.array(v, np.float64).astype("f4") for k, v in ends.items()},
    )


def one_hot(folder: Path) -> Path:
    nodes = [node("OneHot", "ids depth values", "much")]
    arrays = {"ids": np.zeros(1000, np.int64), "depth": np.array(10**8, np.int64)}
    return _spread(folder, "one_hot", nodes, {**arrays, "values": np.array([0, 1], np.float32)})


def slow_products(folder: Path) -> Path:
    """A thousand products of matrices of 6000 x 6000: a day, in a file of a few kB."""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [node("ConstantOfShape", "shape", "m0", value=one)]
    nodes += [node("ReduceMax", "lr", "a", keepdims=0), node("Mul", "m0 a", "p0")]
    nodes += [node("MatMul", f"p{n} m0", f"p{n + 1}") for n in range(1000)]
    nodes += [node("Identity", "p1000", "much")]
    return _spread(folder, "slow_products", nodes, {"shape": np.array([6000, 6000], np.int64)})


def slow_convolution(folder: Path) -> Path:
    """A kernel of 3000 x 3000 over an image that is padded for it."""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    pads = [1500, 1500, 1499, 1499]
    nodes = [
        node("ConstantOfShape", "shape", "kernel", value=one),
        node("Conv", "lr kernel", "much", pads=pads, kernel_shape=[3000, 3000]),
    ]
    return _spread(
        folder, "slow_convolution", nodes, {"shape": np.array([3, 3, 3000, 3000], np.int64)}
    )


def functions_of_functions(folder: Path) -> Path:
    """Each calls the one before ten times: 10^12 nodes once they are inlined."""
    functions, opsets = [], [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    for number in range(12):
        kind = f"F{number - 1}" if number else "Identity"
        domain = {"domain": "f"} if number else {}
        inside = [node(kind, f"x{n}", f"x{n + 1}", **domain) for n in range(10)]
        functions.append(helper.make_function("f", f"F{number}", ["x0"], ["x10"], inside, opsets))
    value = helper.make_tensor_value_info
    ends = [
        value("lr", TensorProto.FLOAT, [1, 3, "h", "w"]),
        value("sr", TensorProto.FLOAT, ["n", "c", "H", "W"]),
    ]
    graph = helper.make_graph(
        [node("F11", "lr", "same", domain="f"), *doubled("same")],
        "g",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(repeat_weight(), "wide")],
    )
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    onnx.save(model, folder / "functions_of_functions.onnx")
    return folder / "functions_of_functions.onnx"


def declared_weight(folder: Path) -> Path:
    """A weight of 10^10 values, of which the file holds one."""
    path = _graph(folder, "declared_weight", [node("Identity", "lr", "same")])
    model = onnx.load(path)
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type, tensor.raw_data = "big", TensorProto.FLOAT, bytes(4)
    tensor.dims[:] = [HUGE, HUGE]
    path.write_bytes(model.SerializeToString())
    return path


def sparse_weight(folder: Path) -> Path:
    """A weight of 10^10 values, all but one zero."""
    path = _graph(folder, "sparse_weight", [node("Identity", "lr", "same")])
    model = onnx.load(path)
    values = numpy_helper.from_array(np.ones(1, np.float32), "big")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [HUGE, HUGE]))
    path.write_bytes(model.SerializeToString())
    return path


def weights_elsewhere(folder: Path) -> Path:
    """Weights that are said to lie in a file of the system."""
    path = _graph(folder, "weights_elsewhere", [node("Identity", "lr", "same")])
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../../../../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    return path


def many_nodes(folder: Path) -> Path:
    nodes = [node("Identity", f"x{n}" if n else "lr", f"x{n + 1}") for n in range(50_000)]
    return _graph(folder, "many_nodes", [*nodes, node("Identity", "x50000", "same")])


def text_for_a_graph(folder: Path) -> Path:
    path = folder / "text_for_a_graph.onnx"
    path.write_bytes(b"\x08\x08\x3a" + b"\xff" * 9 + b"\x7f" + b"[" * 10**6)
    return path


GRAPHS: Sequence[Maker] = (
    endless_loop,
    endless_scan,
    constant_of_shape,
    expand,
    tile,
    resize,
    pad,
    pad_where_it_runs,
    range_of,
    one_hot,
    slow_products,
    slow_convolution,
    functions_of_functions,
    declared_weight,
    sparse_weight,
    weights_elsewhere,
    many_nodes,
    text_for_a_graph,
)
