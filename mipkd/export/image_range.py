"""The range of a foreign graph's images: found by a probe, and brought to [0, 1]."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from mipkd.core.errors import UnsupportedError
from mipkd.core.images import ByteArray, psnr_y
from mipkd.export.foreign_graph import inputs_of, open_model
from mipkd.export.opset import graphs_in, nodes_in
from mipkd.export.parity import in_unit_range

log = logging.getLogger(__name__)

Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
_LEAST_DB = 20.0
_RANGES = (1.0, 255.0)  # the usual one first
_CLEARLY_DB = 0.1  # a net without biases gives the same images in any range


def probe_range(model: Any, path: Path, images: Sequence[Pair], multiple: int) -> float:
    """The range with which the graph gives the better images.

    Raises:
        UnsupportedError: neither makes sense of it.
    """
    run, found = open_model(model), dict[float, float]()
    for image_range in _RANGES:
        scores, unit = [], in_unit_range(run, image_range)
        for _, lr_HWC, hr_HWC in images[:2]:
            height, width = (min(96, s) // multiple * multiple for s in lr_HWC.shape[:2])
            lr = lr_HWC[:height, :width].transpose(2, 0, 1)[None].astype(np.float32)
            sr_HWC = unit(lr / np.float32(255))[0].transpose(1, 2, 0)
            levels = np.nan_to_num(sr_HWC * np.float32(255), nan=0.0)
            pixels = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
            scale = pixels.shape[0] // height
            truth = hr_HWC[: height * scale, : width * scale]
            scores.append(psnr_y(pixels, truth, border=scale))
        found[image_range] = float(np.mean(scores))
    usual, other = _RANGES
    best = other if found[other] > found[usual] + _CLEARLY_DB else usual
    figures = ", ".join(f"{r:g}: {db:.2f} dB" for r, db in found.items())
    if found[best] < _LEAST_DB:
        raise UnsupportedError(
            f"{path}: no image range makes sense of it ({figures})",
            hint="--set adopt.image_range=255, or check that it takes RGB",
        )
    log.info("image range %g by a probe on images (%s)", best, figures)
    return best


def with_unit_range(model: Any, image_range: float) -> Any:
    """A copy that multiplies at the input and divides at the output: its images are in [0, 1]."""
    copy = type(model)()
    copy.CopyFrom(model)
    if image_range == 1:
        return copy
    graph = copy.graph
    image, result = inputs_of(copy)[0].name, graph.output[0].name
    taken = _names_in(copy)
    to_range, from_range = (_fresh(name, taken) for name in ("to_range", "from_range"))
    for name, value in ((to_range, image_range), (from_range, 1 / image_range)):
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
    inner = {end: _fresh(f"{end}_in_range", taken) for end in (image, result)}
    for node in nodes_in(copy):  # branches read the image too
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    first, last = (_fresh(f"{name}_mul", taken) for name in ("to_range", "from_range"))
    graph.node.insert(0, helper.make_node("Mul", [image, to_range], [inner[image]], first))
    graph.node.append(helper.make_node("Mul", [inner[result], from_range], [result], last))
    return copy


def _names_in(model: Any) -> set[str]:
    """Names of all tensors and nodes."""
    names = {name for one in nodes_in(model) for name in (one.name, *one.input, *one.output)}
    for graph in graphs_in(model):
        names |= {one.name for one in (*graph.input, *graph.output, *graph.initializer)}
    return names


def _fresh(name: str, taken: set[str]) -> str:
    """A name that is not taken yet; it is from here on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
