"""The receptive field of an ONNX graph: the margin with which a tile's pixels are exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEFAULT = 32  # LR pixels, if no margin makes tiles exact
_RESIZE_TAPS = 2  # pixels that a cubic kernel reads to either side
_WHOLE = {"GlobalAveragePool", "GlobalMaxPool"}
_REDUCED = {"ReduceMean", "ReduceMax", "ReduceSum"}


@dataclass(frozen=True)
class ReceptiveField:
    """Its radius in LR pixels, and why tiles with that margin are inexact; "" if they are exact."""

    radius: int
    inexact_because: str = ""


@dataclass(frozen=True)
class _Grid:
    """Of a tensor: its receptive field's radius in LR pixels, and its own pixels per LR pixel."""

    radius: float
    finer: float


def find_receptive_field(file: Path) -> ReceptiveField:
    """The receptive field of an ONNX graph with one image in and one out, NCHW."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    constants = _constants(graph)
    image = next(i.name for i in graph.input if i.name not in constants)
    seen, why = {image: _Grid(0.0, 1.0)}, dict[str, None]()
    for node in graph.node:
        inputs = [seen[name] for name in node.input if name in seen]
        if not inputs:
            continue
        here = _Grid(max(i.radius for i in inputs), max(i.finer for i in inputs))
        if len(inputs) > 1 and node.op_type == "MatMul":
            why["attention: its windows look further than a tile's margin"] = None
        if node.op_type in _WHOLE or _reduces_space(node, constants):
            why["global pooling: it looks at the whole image"] = None
            continue  # a value of the whole image has no position
        here = _propagate(node, here, constants)
        if here.finer < 1:
            why["pooling to a coarser grid: it depends on where the grid begins"] = None
        for name in node.output:
            seen[name] = here
    found = math.ceil(seen[graph.output[0].name].radius)
    return ReceptiveField(_DEFAULT, "; ".join(why)) if why else ReceptiveField(found)


def _propagate(node: Any, at: _Grid, constants: dict[str, Any]) -> _Grid:
    facts = {a.name: a for a in node.attribute}
    kind = node.op_type
    if kind in ("Conv", "ConvTranspose", "MaxPool", "AveragePool"):
        kernel = _ints(facts, "kernel_shape") or constants[node.input[1]].shape[2:]
        dilation = _ints(facts, "dilations") or [1] * len(kernel)
        stride = max(_ints(facts, "strides") or [1])
        finer = at.finer * stride if kind == "ConvTranspose" else at.finer
        side = max(((k - 1) * d / 2 for k, d in zip(kernel, dilation, strict=False)), default=0)
        radius = at.radius + side / finer
        return _Grid(radius, finer if kind == "ConvTranspose" else finer / stride)
    if kind == "DepthToSpace":
        return _Grid(at.radius, at.finer * facts["blocksize"].i)
    if kind == "SpaceToDepth":
        return _Grid(at.radius, at.finer / facts["blocksize"].i)
    if kind in ("Resize", "Upsample"):
        factors = [constants[name] for name in node.input[1:] if name in constants]
        factor = max((float(max(f.ravel())) for f in factors if f.size == 4), default=1.0)
        finer = (
            1.0 if at.finer < 1 else at.finer * factor
        )  # from a coarser grid back to the image's
        return _Grid(at.radius + _RESIZE_TAPS / at.finer, finer)
    return at


def _ints(facts: dict[str, Any], name: str) -> list[int]:
    return list(facts[name].ints) if name in facts else []


def _reduces_space(node: Any, constants: dict[str, Any]) -> bool:
    if node.op_type not in _REDUCED:
        return False
    stated = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if stated is None and len(node.input) > 1 and node.input[1] in constants:
        stated = constants[node.input[1]].ravel().tolist()
    return stated is None or {2, 3} <= {axis % 4 for axis in stated}


def _constants(graph: Any) -> dict[str, Any]:
    from onnx import numpy_helper

    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found
