"""Ranges of a LiteRT graph's tensors on calibration patches, and which tensors share a grid.

In INT8 LiteRT's operators that only move or pick values want one grid for what they read and make.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from targets._litert.flatbuffer import write
from targets._litert.session import at_size, interpret

if TYPE_CHECKING:
    from mipkd.core.records import PatchSet
    from targets._litert.net import Net, Op

# Recipes for ranges of activations, the usual one first.
WHOLE, CLIPPED = "whole", "clipped"
RANGE_ESTIMATORS = (WHOLE, CLIPPED)
_CLIPPED = 1e-5  # share of a patch's values that a clipped range leaves out at either end
_BATCH = 4  # patches at a time: every tensor is kept

COMPUTES = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "ADD", "SUB", "MUL")
_FOLLOWS = ("LEAKY_RELU", "LOGISTIC", "TANH", "MEAN")
CLIPS = ("MAXIMUM", "MINIMUM", "RELU", "RELU6", "RELU_N1_TO_1")
_MOVES = (
    *CLIPS,
    *("CONCATENATION", "DEPTH_TO_SPACE", "MAX_POOL_2D", "MIRROR_PAD", "PAD"),
    *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_DEPTH", "STRIDED_SLICE"),
)
_FIXED = {"LOGISTIC": (1 / 256, 0), "TANH": (1 / 128, 128)}  # grids that LiteRT prescribes
_PIXELS = (1 / 255, 0)


@dataclass
class Group:
    """Tensors on one grid; values from `least` to `most`."""

    tensors: list[str]
    least: float
    most: float
    fixed: tuple[float, int] | None = None  # prescribed scale and zero point

    @property
    def scale_and_zero(self) -> tuple[float, int]:
        """Scale, and which of 0 to 255 stands for 0.0."""
        if self.fixed:
            return self.fixed
        low, high = min(0.0, self.least), max(0.0, self.most)
        scale = (high - low) / 255 or 1.0
        return scale, int(np.clip(round(-low / scale), 0, 255))


def moves(op: Op) -> bool:
    """Whether what it makes has values of what it reads, or values between them."""
    return op.role == "moves" or op.code in _MOVES


def follows(op: Op) -> bool:
    """Whether it is as float as what makes its input, on a grid of its own."""
    return op.role == "follows" or op.code in _FOLLOWS


def clip_bounds(net: Net, op: Op) -> tuple[float, float]:
    """Between which values one of `CLIPS` leaves what it reads."""
    if op.code in ("MAXIMUM", "MINIMUM"):
        bound = float(net.constants[op.inputs[1]].reshape(()))
        return (bound, math.inf) if op.code == "MAXIMUM" else (-math.inf, bound)
    return {"RELU": (0.0, math.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}[op.code]


def measure_ranges(net: Net, patches: PatchSet, estimator: str) -> dict[str, tuple[float, float]]:
    """The least and greatest value of each tensor over all patches."""
    images_NHWC = np.load(patches.file).astype(np.float32) / np.float32(255)
    found: dict[str, tuple[float, float]] = {}
    content, sized = write(net), {}
    for start in range(0, len(images_NHWC), _BATCH):
        batch = images_NHWC[start : start + _BATCH]
        if batch.shape not in sized:
            sized[batch.shape] = interpret(
                at_size(content, batch.shape), delegate=False, keep_all=True
            )
        _widen(found, net, sized[batch.shape], batch, estimator)
    return found


def _widen(
    found: dict[str, tuple[float, float]], net: Net, interpreter: Any, batch: Any, estimator: str
) -> None:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], batch)
    interpreter.invoke()
    numbers = {one["name"]: one["index"] for one in interpreter.get_tensor_details()}
    for name in net.features():
        values = interpreter.get_tensor(numbers[name])
        for one in values:
            low, high = _ends(one.ravel(), estimator)
            least, most = found.get(name, (low, high))
            found[name] = (min(least, low), max(most, high))


def _ends(values: Any, estimator: str) -> tuple[float, float]:
    if estimator != CLIPPED or values.size * _CLIPPED < 1:
        return float(values.min()), float(values.max())
    out = int(values.size * _CLIPPED)
    ordered = np.partition(values, [out, values.size - 1 - out])
    return float(ordered[out]), float(ordered[values.size - 1 - out])


def group(net: Net, ranges: dict[str, tuple[float, float]]) -> dict[str, Group]:
    """The group of each tensor."""
    groups = {name: Group([name], *ranges[name]) for name in net.features()}
    for op in net.ops:
        if op.code in _FIXED:
            groups[op.outputs[0]].fixed = _FIXED[op.code]
    for op in net.ops:
        if moves(op):
            _join(net, groups, op)
    _use_levels_of_pixels(net, groups)
    return groups


def _join(net: Net, groups: dict[str, Group], op: Op) -> None:
    """Put what an operator reads and makes on one grid."""
    made, readers = groups[op.outputs[0]], net.readers()
    for name in op.inputs:
        if name in net.constants or groups[name] is made:
            continue
        other = groups[name]
        if op.code in CLIPS and len(readers[name]) == 1:
            other.least, other.most = made.least, made.most  # the grid itself clips
        made.tensors += other.tensors
        made.least, made.most = min(made.least, other.least), max(made.most, other.most)
        made.fixed = made.fixed or other.fixed
        groups.update(dict.fromkeys(other.tensors, made))


def _use_levels_of_pixels(net: Net, groups: dict[str, Group]) -> None:
    """An image has 256 levels: it is read as it is, and the result is clipped to them anyway."""
    image, result, readers = groups[net.image], groups[net.result], net.readers()
    if image.fixed is None and image.least >= 0 and image.most <= 1:
        image.least, image.most = 0.0, 1.0
    inside = [op for name in result.tensors for op, _ in readers.get(name, [])]
    if result.fixed is None and all(moves(op) for op in inside):
        result.least, result.most = 0.0, 1.0
