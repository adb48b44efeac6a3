"""8-bit images at both ends of a model: range, clipping and rounding inside it.

What `targets.base.upscale` does around a model of floats, done by the runtime: a frame needs no
conversion on its way in or out, and is a quarter as large.
Shapes: N batch, C channels, H W low-res size, S scale; NCHW as before.
"""

from __future__ import annotations

from typing import Any

NOTE = "takes and gives uint8, NCHW, RGB: range, clipping and rounding are in the model"


def onnx_on_bytes(model: Any) -> Any:
    """An ONNX model on uint8, in place; its input and output keep their names."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    image, result = graph.input[0], graph.output[0]
    lr, sr = f"{image.name}_float", f"{result.name}_float"
    for node in graph.node:
        for names, old, new in ((node.input, image.name, lr), (node.output, result.name, sr)):
            names[:] = [new if name == old else name for name in names]
        node.input[:] = [sr if name == result.name else name for name in node.input]
    for name, value in (("bytes_white", 255.0), ("bytes_least", 0.0), ("bytes_most", 1.0)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    first = [
        helper.make_node("Cast", [image.name], ["bytes_in"], "bytes_in", to=TensorProto.FLOAT),
        helper.make_node("Div", ["bytes_in", "bytes_white"], [lr], "bytes_range"),
    ]
    last = [
        helper.make_node("Clip", [sr, "bytes_least", "bytes_most"], ["bytes_clip"], "bytes_clip"),
        helper.make_node("Mul", ["bytes_clip", "bytes_white"], ["bytes_levels"], "bytes_levels"),
        helper.make_node("Round", ["bytes_levels"], ["bytes_round"], "bytes_round"),
        helper.make_node("Cast", ["bytes_round"], [result.name], "bytes_out", to=TensorProto.UINT8),
    ]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (image, result):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    return model


def openvino_on_bytes(model: Any) -> Any:
    """An OpenVINO model on uint8, by its own pre- and post-processing."""
    from openvino import Type, opset13
    from openvino.preprocess import PrePostProcessor

    def as_bytes(sr: Any) -> Any:
        levels = opset13.multiply(opset13.clamp(sr, 0.0, 1.0), opset13.constant(255.0, Type.f32))
        return opset13.convert(opset13.round(levels, "half_to_even"), "u8").output(0)

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(Type.u8)
    steps.input().preprocess().convert_element_type(Type.f32).scale(255.0)
    steps.output().postprocess().custom(as_bytes)
    return steps.build()
