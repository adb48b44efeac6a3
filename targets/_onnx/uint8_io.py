"""8-bit images at both ends of an ONNX model: range, clipping and rounding inside it.

What `targets._images.upscale` does around a model of floats, done by the runtime: a frame needs no
conversion on its way in or out, and is a quarter as large.
Shapes: N batch, C channels, H W low-res size, S scale; NCHW as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets._onnx.names import namer, with_branches

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
    image, result, new = graph.input[0], graph.output[0], namer(graph)
    lr, sr = new(f"{image.name}_float"), new(f"{result.name}_float")
    renamed = {image.name: lr, result.name: sr}
    for node in (one for outer in graph.node for one in with_branches(outer)):
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    white, least, most = (new(f"uint8_{name}") for name in ("white", "least", "most"))
    for name, value in ((white, 255.0), (least, 0.0), (most, 1.0)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    read, scale, clip, levels, rounded, write = (
        new(f"uint8_{name}") for name in ("in", "range", "clip", "levels", "round", "out")
    )
    first = [
        helper.make_node("Cast", [image.name], [read], read, to=TensorProto.FLOAT),
        helper.make_node("Div", [read, white], [lr], scale),
    ]
    last = [
        helper.make_node("Clip", [sr, least, most], [clip], clip),
        helper.make_node("Mul", [clip, white], [levels], levels),
        helper.make_node("Round", [levels], [rounded], rounded),
        helper.make_node("Cast", [rounded], [result.name], write, to=TensorProto.UINT8),
    ]
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (image, result):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, file)
