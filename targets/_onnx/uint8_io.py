"""8-bit images at both ends of an ONNX model: range, clipping and rounding inside it.

What `targets.base.upscale` does around a model of floats, done by the runtime: a frame needs no
conversion on its way in or out, and is a quarter as large.
Shapes: N batch, C channels, H W low-res size, S scale; NCHW as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NOTE = "takes and gives uint8, NCHW, RGB: range, clipping and rounding are in the model"


def give_uint8_io(file: Path) -> None:
    """Rewrite a model for uint8 in place; its input and output keep their names."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(file)
    graph = model.graph
    image, result = graph.input[0], graph.output[0]
    lr, sr = f"{image.name}_float", f"{result.name}_float"
    for node in graph.node:
        for names, old, new in ((node.input, image.name, lr), (node.output, result.name, sr)):
            names[:] = [new if name == old else name for name in names]
        node.input[:] = [sr if name == result.name else name for name in node.input]
    for name, value in (("uint8_white", 255.0), ("uint8_least", 0.0), ("uint8_most", 1.0)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    first = [
        helper.make_node("Cast", [image.name], ["uint8_in"], "uint8_in", to=TensorProto.FLOAT),
        helper.make_node("Div", ["uint8_in", "uint8_white"], [lr], "uint8_range"),
    ]
    last = [
        helper.make_node("Clip", [sr, "uint8_least", "uint8_most"], ["uint8_clip"], "uint8_clip"),
        helper.make_node("Mul", ["uint8_clip", "uint8_white"], ["uint8_levels"], "uint8_levels"),
        helper.make_node("Round", ["uint8_levels"], ["uint8_round"], "uint8_round"),
        helper.make_node("Cast", ["uint8_round"], [result.name], "uint8_out", to=TensorProto.UINT8),
    ]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (image, result):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, file)
