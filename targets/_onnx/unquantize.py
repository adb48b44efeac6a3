"""Editing of ONNX graphs with Q/DQ: chosen operations go back to floats without a new calibration.

ONNX Runtime computes an operation in INT8 when its inputs come from DequantizeLinear and what
reads its output is QuantizeLinear. An operation becomes float when it gets its weights and bias
back and neither side of it is rounded, unless a neighbour in INT8 needs that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mipkd.core.errors import StageError, UnsupportedError
from mipkd.core.records import QuantParams
from targets._onnx.names import with_branches

_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


def is_quantized(model: Any) -> bool:
    """Whether a graph already has INT8 in it."""
    return any(node.op_type in (_Q, _DQ, "QLinearConv") for node in model.graph.node)


def refuse_quantized(model: Any) -> None:
    """A quantiser wants floats.

    Raises:
        UnsupportedError: a graph already has INT8 in it.
    """
    if is_quantized(model):
        raise UnsupportedError(
            "the graph is quantised already (it holds Q/DQ)",
            hint="give the float model that it was made from",
        )


def operations(model: Any) -> list[Any]:
    """The nodes that compute in INT8, in order: those with weights, and sums of feature maps."""
    stored = _weight_tensors(model)
    rounded = {n.output[0] for n in model.graph.node if n.op_type == _DQ} - stored
    before = {n.input[0] for n in model.graph.node if n.op_type == _Q}
    return [
        node
        for node in model.graph.node
        if any(name in stored for name in node.input)
        or (node.op_type == "Add" and rounded >= set(node.input) and node.output[0] in before)
    ]


def read_grids(model: Any) -> tuple[QuantParams, ...]:
    """Scale and zero point of every feature map that a quantised model rounds."""
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    found = []
    for node in _dequantized_features(model):
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        found.append(QuantParams(_readers(model, node.output[0]), float(scale), int(zero)))
    return tuple(found)


def set_scales(model: Any, learned: Iterable[QuantParams]) -> None:
    """Give a quantised model the scales of the grids that have the same readers, in place.

    Raises:
        StageError: none has them.
    """
    import numpy as np
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    maker = {node.output[0]: node for node in model.graph.node}
    scales = {grid.readers: grid.scale for grid in learned}
    for node in _dequantized_features(model):
        if (readers := _readers(model, node.output[0])) not in scales:
            raise StageError(f"int8: no grid was learned for what {readers} read")
        for name in {node.input[1], maker[node.input[0]].input[1]}:
            kind = numpy_helper.to_array(constants[name]).dtype
            scale = np.array(scales[readers], kind)
            constants[name].CopyFrom(numpy_helper.from_array(scale, name))


def _dequantized_features(model: Any) -> list[Any]:
    """The DequantizeLinear nodes of feature maps."""
    stored = _weight_tensors(model)
    return [n for n in model.graph.node if n.op_type == _DQ and n.output[0] not in stored]


def _readers(model: Any, tensor: str) -> tuple[tuple[str, int], ...]:
    found = [
        (node.name, index)
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if name == tensor
    ]
    found += [("", i) for i, one in enumerate(model.graph.output) if one.name == tensor]
    return tuple(found)


def restore_floats(quantized: Any, original: Any, names: Iterable[str]) -> Any:
    """A copy of `quantized` in which the nodes called `names` are as in `original`.

    Raises:
        StageError: there is no such node in INT8.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    before = {node.name: node for node in original.graph.node}
    constants = {t.name: t for t in original.graph.initializer}
    floats = set(names)
    held = operations(model)
    if lost := floats - {node.name for node in held}:
        raise StageError(f"int8: no operation {', '.join(sorted(lost))} to be left float")
    stored = _weight_tensors(model)
    for node in held:
        if node.name in floats:
            for index, name in enumerate(node.input):
                if name in stored:
                    node.input[index] = _float_constant(
                        model, constants[before[node.name].input[index]]
                    )
    _bypass(model, {node.name for node in held} - floats)
    _drop_unread(model)
    return model


def _float_constant(model: Any, tensor: Any) -> str:
    """The name of a copy of a weight: its own may be that of what comes from INT8."""
    name = f"{tensor.name}_float"
    if all(t.name != name for t in model.graph.initializer):
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name = name
    return name


def _weight_tensors(model: Any) -> set[str]:
    """Outputs of DequantizeLinear that give weights and biases."""
    constants = {t.name for t in model.graph.initializer}
    nodes = model.graph.node
    return {n.output[0] for n in nodes if n.op_type == _DQ and n.input[0] in constants}


def _bypass(model: Any, still: set[str]) -> None:
    """Bypass Q/DQ pairs between two float nodes: those that are not `still` in INT8."""
    from onnx import helper

    maker = {name: node for node in model.graph.node for name in node.output}
    outputs = {one.name for one in model.graph.output}
    raw = {}
    for node in model.graph.node:
        source = maker.get(node.input[0]) if node.op_type == _DQ else None
        if source is not None and source.op_type == _Q:
            made = maker.get(source.input[0])
            if made is None or made.name not in still:
                raw[node.output[0]] = source.input[0]
    for node in list(model.graph.node):
        if node.name in still:
            continue
        for one in with_branches(node):
            one.input[:] = [raw.get(name, name) for name in one.input]
        if node.op_type == _DQ and node.output[0] in outputs and node.output[0] in raw:
            name = node.output[0]
            node.output[0] = f"{name}_rounded"
            model.graph.node.append(helper.make_node("Identity", [raw[name]], [name]))


def _drop_unread(model: Any) -> None:
    graph = model.graph
    read = {one.name for one in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if read & set(node.output):
            read |= {name for one in with_branches(node) for name in one.input}
            nodes.append(node)
    constants = [t for t in graph.initializer if t.name in read]
    for field, kept in ((graph.node, reversed(nodes)), (graph.initializer, constants)):
        new = list(kept)
        del field[:]
        field.extend(new)
