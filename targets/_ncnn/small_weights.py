"""Weights that pnnx would store as zeros: its 16-bit floats have no subnormal numbers.

A net's last convolution divides by 255 where pixels are 0 to 1 outside and 0 to 255 inside: of
MLPerf's EDSR a sixth of its weights would be zeros, and the image 4 levels off.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_SMALLEST = float(np.finfo(np.float16).smallest_normal)
_ALLOWED = 2.0**-10  # share of a layer's absolute weights: about what rounding the others costs


def scale_small_weights(model: Any) -> Any:
    """The ONNX model with such weights times a power of two, and their results divided by it.

    In float32 it gives the same values to the last bit.
    """
    from onnx import numpy_helper

    tensors = {one.name: one for one in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        if any(name and name not in tensors for name in node.input[1:]):
            continue  # computed by the graph
        weight = numpy_helper.to_array(tensors[node.input[1]])
        if weight.dtype == np.float32 and _loses_weights(weight):
            nodes.append(_scale(model, node, _power_of_two(weight)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _loses_weights(weight: npt.NDArray[np.float32]) -> bool:
    sizes = np.abs(weight)
    return float(sizes[sizes < _SMALLEST].sum()) > _ALLOWED * float(sizes.sum())


def _power_of_two(weight: npt.NDArray[np.float32]) -> float:
    """What brings the greatest weight to between 1 and 2."""
    return math.ldexp(1.0, 1 - math.frexp(float(np.abs(weight).max()))[1])


def _scale(model: Any, node: Any, factor: float) -> Any:
    """Give the node scaled copies of its weights; the node that divides its result."""
    from onnx import helper, numpy_helper

    tensors = {one.name: one for one in model.graph.initializer}
    for index, name in enumerate(node.input):
        if index > 0 and name:
            scaled = np.asarray(numpy_helper.to_array(tensors[name]) * np.float32(factor))
            node.input[index] = f"{name}_times_{factor:g}"
            if node.input[index] not in tensors:  # another node has the same weights
                model.graph.initializer.append(numpy_helper.from_array(scaled, node.input[index]))
    result, node.output[0] = node.output[0], f"{node.output[0]}_scaled"
    divisor = numpy_helper.from_array(np.array(1 / factor, np.float32), f"{result}_divisor")
    model.graph.initializer.append(divisor)
    return helper.make_node("Mul", [node.output[0], divisor.name], [result])
