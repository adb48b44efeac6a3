"""Pixel shuffle as a transposed convolution of ones and zeros, for runtimes that lack it.

DepthToSpace only moves values: a transposed convolution whose stride and kernel are the block's
side moves them too, each times one, and adds nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper, shape_inference

from mipkd.core.errors import UnsupportedError

_OP = "DepthToSpace"


def with_transposed(model: Any) -> Any:
    """A copy of an ONNX model with a transposed convolution in place of each DepthToSpace.

    Its nodes keep their names, inputs and outputs.

    Raises:
        UnsupportedError: the model does not tell how many channels are shuffled.
    """
    made = type(model)()
    made.CopyFrom(model)
    values = shape_inference.infer_shapes(made).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*values.value_info, *values.input)}
    for node in made.graph.node:
        if node.op_type != _OP:
            continue
        dims = shapes.get(node.input[0], ())
        if len(dims) != 4 or not dims[1].dim_value:
            raise UnsupportedError(
                f"export: it is not known how many channels {node.name or _OP} shuffles",
                hint="leave out export.shuffle",
            )
        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        side = int(facts["blocksize"])
        weight = _weight(dims[1].dim_value, side, by_block=facts.get("mode", b"DCR") == b"DCR")
        name = f"{node.output[0]}_ones"
        made.graph.initializer.append(numpy_helper.from_array(weight, name))
        node.op_type = "ConvTranspose"
        del node.attribute[:]
        node.input.append(name)
        node.attribute.append(helper.make_attribute("strides", [side, side]))
    return made


def _weight(channels: int, side: int, *, by_block: bool) -> np.ndarray:
    """One at (channel read, channel written, row, column) of each value that is moved.

    `by_block`: all channels of a place in the block lie together ("DCR"), as against all places
    of a channel ("CRD", which torch's pixel shuffle is).
    """
    written = channels // side**2
    weight = np.zeros((channels, written, side, side), np.float32)
    for to, row, column in np.ndindex(written, side, side):
        place = row * side + column
        read = place * written + to if by_block else to * side**2 + place
        weight[read, to, row, column] = 1.0
    return weight
