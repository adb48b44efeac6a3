"""Pixel shuffle as a transposed convolution of ones and zeros, for runtimes without DepthToSpace.

Both only move values if the convolution's stride and kernel are the block's side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper, shape_inference

from mipkd.core.errors import UnsupportedError

_OP = "DepthToSpace"


def shuffles(model: Any) -> bool:
    """Whether an ONNX model has a DepthToSpace."""
    return any(node.op_type == _OP for node in model.graph.node)


def replace_pixel_shuffle(model: Any) -> Any:
    """A copy of an ONNX model with a transposed convolution in place of each DepthToSpace.

    The nodes' names, inputs and outputs stay.

    Raises:
        UnsupportedError: the number of shuffled channels is unknown.
    """
    edited = type(model)()
    edited.CopyFrom(model)
    values = shape_inference.infer_shapes(edited).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*values.value_info, *values.input)}
    for node in edited.graph.node:
        if node.op_type != _OP:
            continue
        dims = shapes.get(node.input[0], ())
        if len(dims) != 4 or not dims[1].dim_value:
            raise UnsupportedError(
                f"export: {node.name or _OP} shuffles an unknown number of channels",
                hint="leave out export.shuffle",
            )
        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        side = int(facts["blocksize"])
        weight = _weight(dims[1].dim_value, side, by_block=facts.get("mode", b"DCR") == b"DCR")
        name = f"{node.output[0]}_ones"
        edited.graph.initializer.append(numpy_helper.from_array(weight, name))
        node.op_type = "ConvTranspose"
        del node.attribute[:]
        node.input.append(name)
        node.attribute.append(helper.make_attribute("strides", [side, side]))
    return edited


def _weight(channels: int, side: int, *, by_block: bool) -> np.ndarray:
    """The kernel: 1 at (channel read, channel written, row, column) of each moved value.

    `by_block`: the channels of a place in the block are consecutive ("DCR"), not the places of a
    channel ("CRD", as in torch's pixel shuffle).
    """
    written = channels // side**2
    weight = np.zeros((channels, written, side, side), np.float32)
    for to, row, column in np.ndindex(written, side, side):
        place = row * side + column
        read = place * written + to if by_block else to * side**2 + place
        weight[read, to, row, column] = 1.0
    return weight
