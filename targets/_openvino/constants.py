"""Constants in OpenVINO graphs, and what is computed of nothing else."""

from __future__ import annotations

from typing import Any


def is_constant(node: Any) -> bool:
    """Whether an operation has the same values whatever the image is."""
    sources = [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return node.get_type_name() == "Constant" or (bool(sources) and all(map(is_constant, sources)))


def constant_of(node: Any) -> Any:
    """A constant of the same values; what stands between it and the reader is computed now."""
    from openvino import opset13

    if node.get_type_name() == "Constant":
        return opset13.constant(node.data, dtype=node.data.dtype).output(0)
    import openvino

    folded = openvino.Model([node.output(0)], [], "weights")
    value = openvino.compile_model(folded, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})[0]
    return opset13.constant(value, dtype=value.dtype).output(0)
