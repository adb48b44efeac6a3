"""Slices and splits: parts of a feature map."""

from __future__ import annotations

from typing import Any

import numpy as np

from targets._litert.from_onnx import AXES, Builder, attributes, follow_layout, refuse


def take_slice(builder: Builder, node: Any) -> None:
    starts, ends, axes, steps = _slice_bounds(builder, node)
    begin, end, stride = [0] * 4, [0] * 4, [1] * 4
    begin_mask = end_mask = 0b1111
    for start, stop, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = axis % 4 if node.input[0] in builder.last else AXES[axis % 4]
        begin[at], stride[at] = int(start), int(step)
        begin_mask &= ~(1 << at)
        if stop < 2**31 - 1:
            end[at] = int(stop)
            end_mask &= ~(1 << at)
    strided_slice(
        builder, node, node.input[0], node.output[0], (begin, end, stride), begin_mask, end_mask
    )
    follow_layout(builder, node)


def _slice_bounds(builder: Builder, node: Any) -> list[list[int]]:
    stated = attributes(node)
    if "starts" in stated:  # before opset 10
        starts, ends = list(stated["starts"]), list(stated["ends"])
        return [starts, ends, list(stated.get("axes", range(len(starts)))), [1] * len(starts)]
    given = [builder.values.get(name) for name in node.input[1:]]
    if any(value is None for value, name in zip(given, node.input[1:], strict=True) if name):
        raise refuse(node, "bounds that are computed")
    starts, ends = (np.ravel(value).tolist() for value in given[:2] if value is not None)
    axes = given[2] if len(given) > 2 and given[2] is not None else np.arange(len(starts))
    steps = given[3] if len(given) > 3 and given[3] is not None else np.ones(len(starts), int)
    return [starts, ends, np.ravel(axes).tolist(), np.ravel(steps).tolist()]


def split(builder: Builder, node: Any) -> None:
    stated = attributes(node)
    axis = AXES[stated.get("axis", 0) % 4]
    given = builder.values.get(node.input[1]) if len(node.input) > 1 else stated.get("split")
    if given is None:
        raise refuse(node, "into parts of unstated sizes")
    first = 0
    for name, size in zip(node.output, np.ravel(given).tolist(), strict=True):
        begin, end = [0] * 4, [0] * 4
        begin[axis], end[axis] = first, first + size
        mask = 0b1111 & ~(1 << axis)
        strided_slice(builder, node, node.input[0], name, (begin, end, [1] * 4), mask, mask)
        first += size


def strided_slice(
    builder: Builder,
    node: Any,
    source: str,
    output: str,
    bounds: tuple[list[int], list[int], list[int]],
    begin_mask: int,
    end_mask: int,
) -> None:
    """Add a slice that is called `output` in ONNX; `bounds` are begins, ends and steps."""
    names = [
        builder.constant(f"{output}_{part}", values, np.int32)
        for part, values in zip(("begin", "end", "stride"), bounds, strict=True)
    ]
    masks = {"beginMask": begin_mask, "endMask": end_mask}
    builder.name(output, builder.add("STRIDED_SLICE", node, [source, *names], output, **masks))
