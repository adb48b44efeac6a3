"""Casting of a foreign ONNX graph to float32: quantisers and converters take no other float.

Some drop what is float16, some keep it and call the result FP32, one crashes on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from mipkd.export.opset import graphs_in

_OTHERS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# Attributes that hold an element type, over all of ONNX's operators.
_TYPES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision")


def other_floats(model: Any) -> list[str]:
    """Names of the float types besides float32 that a model states, such as "float16"."""
    found = {kind for graph in graphs_in(model) for kind in _stated(graph)}
    return sorted(TensorProto.DataType.Name(kind).lower() for kind in found.intersection(_OTHERS))


def cast_to_float32(model: Any) -> Any:
    """A copy of a model in which every float is float32, both ends included."""
    copy = type(model)()
    copy.CopyFrom(model)
    for graph in graphs_in(copy):
        for tensor in graph.initializer:
            _widen(tensor)
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in _OTHERS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        del graph.value_info[:]
        for attribute in (a for node in graph.node for a in node.attribute):
            _retype(attribute)
    _drop_casts(copy)
    return copy


def _stated(graph: Any) -> Iterator[int]:
    """Every element type that a graph states."""
    yield from (tensor.data_type for tensor in graph.initializer)
    yield from (v.type.tensor_type.elem_type for v in (*graph.input, *graph.output))
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.name in _TYPES:
            yield attribute.i
        yield from (tensor.data_type for tensor in (attribute.t, *attribute.tensors))


def _retype(attribute: Any) -> None:
    if attribute.name in _TYPES and attribute.i in _OTHERS:
        attribute.i = TensorProto.FLOAT
    for tensor in (attribute.t, *attribute.tensors):
        _widen(tensor)


def _widen(tensor: Any) -> None:
    if tensor.data_type not in _OTHERS:
        return
    value = numpy_helper.to_array(tensor).astype(np.float64)
    most = float(np.finfo(np.float32).max)  # masks may hold the least number of a double
    finite = np.where(np.isfinite(value), np.clip(value, -most, most), value)
    tensor.CopyFrom(numpy_helper.from_array(finite.astype(np.float32), tensor.name))


def _drop_casts(model: Any) -> None:
    """Remove what casts float32 to float32; branches may read any name, so graphs with them keep
    all."""
    graph = model.graph
    if len(list(graphs_in(model))) > 1:
        return
    known = shape_inference.infer_shapes(model).graph
    values = (*known.input, *known.value_info, *known.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    ends = {value.name for value in graph.output}
    for node in [n for n in graph.node if n.op_type == "Cast"]:
        to = onnx.helper.get_node_attr_value(node, "to")
        read, made = node.input[0], node.output[0]
        maker = next((n for n in graph.node if read in n.output), None)
        if to != TensorProto.FLOAT or read not in floats or (made in ends and maker is None):
            continue
        old, new = (read, made) if made in ends else (made, read)
        if old in ends:  # two results, or a result read on: the names must stay
            continue
        graph.node.remove(node)
        for other in graph.node:
            other.input[:] = [new if name == old else name for name in other.input]
            other.output[:] = [new if name == old else name for name in other.output]
