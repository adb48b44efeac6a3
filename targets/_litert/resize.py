"""Heights and widths that a graph computes of its image's, read off by running it at some sizes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from mipkd.core.errors import UnsupportedError
from targets._litert.net import Side

SIZED = ("Resize", "Upsample", "ConvTranspose")
_STEPS = (
    (96, 64),
    (64, 112),
    (144, 96),
    (120, 88),
)  # LR heights and widths, of which two settle it


def read_sizes(model: Any, multiple: int) -> dict[str, tuple[Side, Side]]:
    """Height and width of what each of `SIZED` makes, by the output's name.

    Raises:
        UnsupportedError: one does not grow with the image in a straight line.
    """
    outputs = [node.output[0] for node in model.graph.node if node.op_type in SIZED]
    if not outputs:
        return {}
    images = [tuple(-(-side // multiple) * multiple for side in size) for size in _STEPS]
    runs = [_shapes(model, outputs, size) for size in images]
    found = {}
    for name in outputs:
        sides = []
        for axis in (0, 1):
            pairs = [(size[axis], run[name][axis]) for size, run in zip(images, runs, strict=True)]
            sides.append(_line(name, pairs))
        found[name] = (sides[0], sides[1])
    return found


def _shapes(model: Any, outputs: list[str], size: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    import onnx
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    content = copy.SerializeToString()
    session = onnxruntime.InferenceSession(content, settings, ["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    made = session.run(None, {image.name: np.zeros((1, image.shape[1], *size), np.float32)})
    names = [one.name for one in session.get_outputs()]
    return {name: value.shape[2:4] for name, value in zip(names, made, strict=True)}


def _line(name: str, pairs: list[tuple[int, int]]) -> Side:
    """The straight line through pairs of the image's side and the tensor's."""
    (x, y), (u, v) = next((a, b) for a in pairs for b in pairs if a[0] < b[0])
    slope = Fraction(v - y, u - x)
    rest = y - slope * x
    over = slope.denominator * rest.denominator
    side = Side(int(slope * over), over, int(rest * over))
    if any(side.of(given) != made for given, made in pairs):
        raise UnsupportedError(
            f"litert: the size of {name} does not grow with the image's in a straight line",
            hint="take another target for this net: --target",
        )
    return side
