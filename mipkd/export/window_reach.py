"""What convolutions, pools, resizing, padding and shuffles read around a position."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from mipkd.export.image_axes import Along, Axes, Axis, Operation


def slide_window(op: Operation) -> Axes:
    """Conv and pools."""
    op.require_no_place([0, 1], "its channels are places")
    stated = op.facts.get("kernel_shape")
    kernel = list(stated) if stated else list(_weight_shape(op)[2:])
    strides = op.facts.get("strides") or [1] * len(kernel)
    dilations = op.facts.get("dilations") or [1] * len(kernel)
    found: list[Axis] = [None, None]
    for at, axis in enumerate(op.first.axes[2:]):
        span = (kernel[at] - 1) * dilations[at]
        begin = _begin(op, at, strides[at], span)
        found.append(axis and axis.strided(strides[at], begin, span))
    return tuple(found)


def _begin(op: Operation, at: int, stride: int, span: int) -> int:
    """Padding before the first position, of an axis counted from the height."""
    mode = op.facts.get("auto_pad", b"NOTSET")
    if not mode.startswith(b"SAME"):
        pads = op.facts.get("pads")
        return int(pads[at]) if pads and mode == b"NOTSET" else 0
    lengths = [(i[at + 2], o[at + 2]) for i, o in zip(op.first.shapes, op.shapes, strict=True)]
    padded = {max((o - 1) * stride + span + 1 - i, 0) for i, o in lengths}
    if len(padded) > 1:
        op.fail("its padding depends on the image's size")
    total = padded.pop()
    return total // 2 if mode == b"SAME_UPPER" else total - total // 2


def _weight_shape(op: Operation) -> tuple[int, ...]:
    weight = op.inputs[1]
    return weight.shapes[0] if weight else op.fail("its kernel is unknown")


def transpose_conv(op: Operation) -> Axes:
    op.require_no_place([0, 1], "its channels are places")
    mode = op.facts.get("auto_pad", b"NOTSET")
    if "output_shape" in op.facts or mode not in (b"NOTSET", b"VALID"):
        op.fail("its padding depends on the image's size")
    kernel = _weight_shape(op)[2:]
    strides = op.facts.get("strides") or [1] * len(kernel)
    dilations = op.facts.get("dilations") or [1] * len(kernel)
    pads = op.facts.get("pads") or [0] * 2 * len(kernel)
    found: list[Axis] = [None, None]
    for axis, k, d, s, begin in zip(
        op.first.axes[2:], kernel, dilations, strides, pads, strict=False
    ):
        found.append(axis and axis.refined(s, begin, (k - 1) * d))
    return tuple(found)


def depth_to_space(op: Operation) -> Axes:
    op.require_no_place([0, 1], "its channels are places")
    side = op.facts["blocksize"]
    return tuple(axis and axis.refined(side) for axis in op.first.axes)


def space_to_depth(op: Operation) -> Axes:
    op.require_no_place([0, 1], "its channels are places")
    side = op.facts["blocksize"]
    return tuple(axis and axis.split(side) for axis in op.first.axes)


def resize(op: Operation) -> Axes:
    # Before opset 11 it had no attributes for where pixels lie.
    old = op.kind == "Upsample" or op.opset < 11
    where = b"asymmetric" if old else op.facts.get("coordinate_transformation_mode", b"half_pixel")
    found: list[Axis] = []
    for at, axis in enumerate(op.first.axes):
        lengths = [(i[at], o[at]) for i, o in zip(op.first.shapes, op.shapes, strict=True)]
        factors = {Fraction(o, i) for i, o in lengths}
        if axis is None or factors == {1}:
            found.append(axis)
            continue
        if len(factors) > 1 or not _is_stated(op, at, old, lengths):
            op.fail("its factor depends on the image's size")
        if where not in (b"half_pixel", b"pytorch_half_pixel", b"asymmetric"):
            op.fail(f"{where.decode(errors='replace')}: its places depend on the image's size")
        found.append(_interpolate(op, axis, factors.pop(), where != b"asymmetric", old))
    return tuple(found)


def _is_stated(op: Operation, at: int, old: bool, lengths: list[tuple[int, int]]) -> bool:
    """Whether its scale is just the ratio of the lengths, where one is given."""
    scales = op.facts.get("scales") or op.values(1 if old else 2)
    if not scales:
        return True  # sizes are given
    axes = op.facts.get("axes") or range(len(op.first.axes))
    scale = dict(zip((a % len(op.first.axes) for a in axes), scales, strict=False)).get(at, 1.0)
    ratio = lengths[0][1] / lengths[0][0]
    return bool(np.float32(ratio) == np.float32(scale))


def _interpolate(op: Operation, axis: Along, factor: Fraction, halves: bool, old: bool) -> Along:
    """Over all phases of the grids: how far the pixels lie that a kernel weighs."""
    mode = op.facts.get("mode", b"nearest")
    taps = {b"nearest": 0, b"linear": 1, b"bilinear": 1, b"cubic": 2}.get(mode)
    if taps is None:
        op.fail(f"mode {mode.decode(errors='replace')} is not known")
    wide = Fraction(taps)
    if op.facts.get("antialias"):
        wide /= min(factor, Fraction(1))
    rounding = b"floor" if old else op.facts.get("nearest_mode", b"round_prefer_floor")
    offset = (1 / factor - 1) / 2 if halves else Fraction(0)
    before = after = Fraction(0)
    for q in range(factor.numerator):
        plain = q / factor
        x = plain + offset
        low, high = (
            _nearest(x, rounding) if not taps else (math.ceil(x - wide), math.floor(x + wide))
        )
        before, after = max(before, plain - low), max(after, high - plain)
    before, after = axis.before + axis.step * before, axis.after + axis.step * after
    return Along(axis.side, axis.step / factor, before, after)


def _nearest(x: Fraction, rounding: bytes) -> tuple[int, int]:
    down = math.floor(x)
    halfway = x - down == Fraction(1, 2)
    return {
        b"floor": (down, down),
        b"ceil": (math.ceil(x), math.ceil(x)),
    }.get(rounding, (down, down + 1) if halfway else (round(x), round(x)))


def pad(op: Operation) -> Axes:
    pads, named = op.stated("pads", 1) or [], op.values(3)
    mode, rank = op.facts.get("mode", b"constant"), len(op.first.axes)
    axes = [int(axis) % rank for axis in named] if named else list(range(rank))
    found = list(op.first.axes)
    for at, begin, end in zip(axes, pads, pads[len(axes) :], strict=False):
        axis = found[at]
        if axis is None or not (begin or end):
            continue
        if mode == b"wrap":
            op.fail("it reads the other end of the image")
        if mode != b"constant":  # mirrored, what was read before is read after
            most = max(axis.before, axis.after) + axis.step
            axis = replace(axis, before=most, after=most)
        found[at] = axis.strided(1, int(begin), 0)
    return tuple(found)


def cut(op: Operation) -> Axes:
    starts, axes, rank = op.values(1) or [], op.values(3), len(op.first.axes)
    steps = op.values(4) or [1] * len(starts)
    found = list(op.first.axes)
    for at, start, step in zip(axes or range(rank), starts, steps, strict=False):
        axis = found[at % rank]
        if axis is None:
            continue
        if start < 0 or step < 1:
            op.fail("it counts from the image's other end")
        found[at % rank] = axis.strided(int(step), -int(start), 0)
    return tuple(found)
