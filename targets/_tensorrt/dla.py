"""What of a graph a Jetson's DLA computes, by the lists that NVIDIA publishes.

Operators: github.com/NVIDIA/Deep-Learning-Accelerator-SW, operators/README.md (those that TensorRT
offers natively); Min, Div, Pow and the limits: TensorRT 11.4's "DLA Supported Layers and
Restrictions"; of resizing: the same page of TensorRT 8.2. A DLA computes in FP16 or INT8 and takes
one size; the rest is the GPU's. Nothing of this has run on one.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from mipkd.core.errors import UnsupportedError

SHUFFLE = "DepthToSpace"  # the DLA's own way is a transposed convolution: `export.shuffle`
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_COMPUTED = _PRODUCTS | {
    *("Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Cos", "Div", "Equal"),
    *("LRN", "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "PRelu", "Pow", "Relu", "Reshape"),
    *("Resize", "Sigmoid", "Slice", "Softmax", "Sub", "Sum", "Tanh", "Transpose", "Upsample"),
}
_AT_BUILD = frozenset({"Constant", "ConstantOfShape", "Shape"})  # with fixed sizes
_MOST_KERNEL, _MOST_STRIDE, _MOST_CHANNELS, _MOST_SCALE = 32, 8, 8192, 32


def refuse_others(model: Any) -> Counter[str]:
    """Refuse a typed graph whose 16-bit part holds what a DLA does not compute; gives how many
    operators of each kind are left to the GPU: float32 ones at the image's ends, pixel shuffles.

    Raises:
        UnsupportedError: names the first one, and why.
    """
    from onnx import TensorProto

    halves, floats = (_tensors(model, k) for k in (TensorProto.FLOAT16, TensorProto.FLOAT))
    weights, on_gpu = {t.name: t for t in model.graph.initializer}, Counter[str]()
    for node in model.graph.node:
        if node.op_type in _AT_BUILD or not {*node.output} & (halves | floats):
            continue
        at_end = node.op_type == "Cast" or bool({*node.output} & floats)
        if node.op_type == SHUFFLE or (at_end and node.op_type not in _PRODUCTS):
            on_gpu[node.op_type] += 1
        elif reason := "FP16 would overflow" if at_end else _why_not(node, weights):
            raise UnsupportedError(
                f"jetson: a DLA does not compute {node.op_type} {node.name!r}: {reason}",
                hint="take the GPU: --target jetson",
            )
    return on_gpu


def _tensors(model: Any, kind: int) -> set[str]:
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == kind}


def _why_not(node: Any, weights: dict[str, Any]) -> str:
    from onnx import helper, numpy_helper

    if node.op_type not in _COMPUTED:
        return "it is not on NVIDIA's list"
    stated = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Concat":
        return "" if stated["axis"] == 1 else "it joins along another axis than channels"
    if node.op_type == "Resize":
        scales = weights.get(node.input[2]) if len(node.input) == 3 else None
        found = numpy_helper.to_array(scales).tolist() if scales else [0.5]
        whole = all(scale in range(1, _MOST_SCALE + 1) for scale in found)
        return "" if whole else f"its scale is no constant whole number up to {_MOST_SCALE}"
    if node.op_type not in _PRODUCTS:
        return ""
    if node.input[1] not in weights:
        return "it multiplies by what is no constant"
    dims = weights[node.input[1]].dims
    if max((1, *dims[2:])) > _MOST_KERNEL or max(dims[:2]) > _MOST_CHANNELS:
        return f"its weights are {'x'.join(map(str, dims))}"
    if max(stated.get("strides", (1,))) > _MOST_STRIDE:
        return f"its stride is over {_MOST_STRIDE}"
    if node.op_type == "ConvTranspose" and (
        stated.get("group", 1) > 1 or any(stated.get("pads", ()))
    ):
        return "it is grouped or padded"
    return ""
