"""ONNX graphs with Q/DQ, edited: chosen operations go back to floats, nothing is calibrated again.

ONNX Runtime computes an operation in INT8 when its inputs come from DequantizeLinear and what
reads its output is QuantizeLinear. An operation becomes float when it gets its weights and bias
back and neither side of it is rounded, unless a neighbour in INT8 needs that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from mipkd.core.errors import StageError
from mipkd.core.records import Grid

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


def is_quantized(model: Any) -> bool:
    """Whether a graph already has INT8 in it."""
    return any(node.op_type in (_Q, _DQ, "QLinearConv") for node in model.graph.node)


def operations(model: Any) -> list[Any]:
    """The nodes that compute in INT8, in order: those with weights, and sums of feature maps."""
    return _operations(_read(model).graph)


def read_grids(model: Any) -> tuple[Grid, ...]:
    """Scale and zero point of every feature map that a quantised model rounds."""
    found = []
    for value in _rounded_features(_read(model).graph):
        scale, zero = (one.const_value.numpy() for one in value.producer().inputs[1:3])
        found.append(Grid(_readers(value), float(scale), int(zero)))
    return tuple(found)


def with_scales(model: Any, learned: Iterable[Grid]) -> Any:
    """A copy of a quantised model with the scales of the grids that have the same readers.

    Raises:
        StageError: none has them.
    """
    import numpy as np
    import onnx_ir as ir

    copy = _read(model)
    scales = {grid.readers: grid.scale for grid in learned}
    for value in _rounded_features(copy.graph):
        if (readers := _readers(value)) not in scales:
            raise StageError(f"int8: no grid was learned for what {readers} read")
        dequantize = value.producer()
        for scale in {dequantize.inputs[1], dequantize.inputs[0].producer().inputs[1]}:
            kind = scale.const_value.numpy().dtype
            scale.const_value = ir.tensor(np.array(scales[readers], kind), name=scale.name)
    return _write(copy)


def restore_floats(quantized: Any, original: Any, names: Iterable[str]) -> Any:
    """A copy of `quantized` in which the nodes called `names` are as in `original`.

    Raises:
        StageError: there is no such node in INT8.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model, floats = _read(quantized), set(names)
    before = {node.name: node for node in _read(original).graph}
    held = _operations(model.graph)
    if lost := floats - {node.name for node in held}:
        raise StageError(f"int8: no operation {', '.join(sorted(lost))} to be left float")
    for node in held:
        for index, value in enumerate(node.inputs if node.name in floats else ()):
            if _is_stored(value):
                weight = _copy_constant(model.graph, before[node.name].inputs[index])
                node.replace_input_with(index, weight)
    _bypass(model.graph, {node.name for node in held} - floats)
    RemoveUnusedNodesPass()(model)
    return _write(model)


def _read(model: Any) -> Any:
    import onnx_ir as ir

    return ir.from_proto(model)


def _write(model: Any) -> Any:
    import onnx_ir as ir

    for value in model.graph.initializers.values():
        value.type = None  # or it would be stated a second time, beside the tensor's own
    return ir.to_proto(model)


def _operations(graph: Any) -> list[Any]:
    return [
        node
        for node in graph
        if any(_is_stored(value) for value in node.inputs)
        or (
            node.op_type == "Add"
            and all(_is_made_by(value, _DQ) for value in node.inputs)
            and any(use.node.op_type == _Q for use in node.outputs[0].uses())
        )
    ]


def _is_made_by(value: Any, kind: str) -> bool:
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type == kind


def _is_stored(value: Any) -> bool:
    """Whether a tensor is a weight or a bias on its way from INT8."""
    return _is_made_by(value, _DQ) and value.producer().inputs[0].is_initializer()


def _rounded_features(graph: Any) -> list[Any]:
    found = [node.outputs[0] for node in graph if node.op_type == _DQ]
    return [value for value in found if not _is_stored(value)]


def _readers(value: Any) -> tuple[tuple[str, int], ...]:
    """Names of the nodes that read a tensor and which input of each; "" is the result."""
    found = [(use.node.name, use.idx) for use in value.uses()]
    graph = value.producer().graph
    return (*found, *(("", i) for i, one in enumerate(graph.outputs) if one is value))


def _copy_constant(graph: Any, weight: Any) -> Any:
    """A copy of a weight: its own name may be that of what comes from INT8."""
    import onnx_ir as ir

    name = f"{weight.name}_float"
    if name not in graph.initializers:
        tensor = ir.tensor(weight.const_value.numpy(), name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]


def _bypass(graph: Any, still: Collection[str]) -> None:
    """Bypass Q/DQ pairs between two float nodes: those that are not `still` in INT8."""
    import onnx_ir as ir

    raw = {}  # behind a pair: what is before it
    for value in _rounded_features(graph):
        quantize = value.producer().inputs[0].producer()
        if quantize is not None and quantize.op_type == _Q:
            maker = quantize.inputs[0].producer()
            if maker is None or maker.name not in still:
                raw[value] = quantize.inputs[0]
    for node in [node for node in graph if node.name not in still]:
        for index, value in enumerate(node.inputs):
            if value in raw:
                node.replace_input_with(index, raw[value])
    for index, value in enumerate(graph.outputs):
        if value in raw:
            copy = ir.node("Identity", [raw[value]])
            (result,) = copy.outputs
            result.name, result.type, result.shape = value.name, value.type, value.shape
            value.name = f"{value.name}_rounded"
            graph.append(copy)
            graph.outputs[index] = result
