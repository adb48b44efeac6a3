"""What a position of an ONNX operator's result reads, along the image's height and width.

Only operators that stand in `RULES` are known; each rule gives the axes of the results or raises
`InexactError`. Lengths were measured at several sizes of the image (`receptive_field`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mipkd.export.image_axes import Along, Axes, Axis, Operation, Shapes
from mipkd.export.window_reach import (
    cut,
    depth_to_space,
    pad,
    resize,
    slide_window,
    space_to_depth,
    transpose_conv,
)


def find_axes(operation: Operation) -> Axes:
    """The axes of all results of an operation.

    Raises:
        InexactError: it is unknown, or looks further than a margin.
    """
    rule = RULES.get(operation.kind) or operation.fail("how far it looks is not known")
    return rule(operation)


def _broadcast(op: Operation) -> Axes:
    """Operands meet position by position, from the last axis; an axis of length 1 is repeated."""
    operands = [operand for operand in op.inputs if operand]
    rank = max(len(operand.axes) for operand in operands)
    found: list[Axis] = []
    for back in range(1, rank + 1):
        here = [o for o in operands if len(o.axes) >= back]
        along = [axis for o in here if (axis := o.axes[-back])]
        plain = any(o.axes[-back] is None and o.shapes[0][-back] != 1 for o in here)
        found.append(_meet(op, along, plain and bool(along)))
    return tuple(reversed(found))


def _meet(op: Operation, along: Sequence[Along], with_plain: bool) -> Axis:
    if with_plain or len({(axis.side, axis.step) for axis in along}) > 1:
        op.fail("it joins values of different places")
    if not along:
        return None
    widest = max(axis.before for axis in along), max(axis.after for axis in along)
    return Along(along[0].side, along[0].step, *widest)


def _same(op: Operation) -> Axes:
    """Every position reads itself alone; constants have one value a channel."""
    return op.first.axes


def _batch_normalize(op: Operation) -> Axes:
    if op.facts.get("training_mode"):
        op.fail("it looks at the whole image")
    op.require_no_place([1], "its channels are places")
    return op.first.axes


def _drop_out(op: Operation) -> Axes:
    if any(op.values(2) or ()):
        op.fail("it is random")
    return op.first.axes


def _split(op: Operation) -> Axes:
    op.require_no_place([op.facts.get("axis", 0)], "it parts the image")
    return op.first.axes


def _concat(op: Operation) -> Axes:
    rank = len(op.shapes[0])
    axis = op.facts["axis"] % rank
    if any(operand and operand.axes[axis] for operand in op.inputs):
        op.fail("it joins parts of the image side by side")
    # Along that axis the lengths differ.
    parts = tuple(
        o and replace(o, shapes=tuple((*s[:axis], 1, *s[axis + 1 :]) for s in o.shapes))
        for o in op.inputs
    )
    return _broadcast(replace(op, inputs=parts))


def _transpose(op: Operation) -> Axes:
    order = op.facts.get("perm") or range(len(op.first.axes))[::-1]
    return tuple(op.first.axes[at] for at in order)


def _gather(op: Operation) -> Axes:
    rank, indices = len(op.first.axes), op.inputs[1]
    at = op.facts.get("axis", 0) % rank
    op.require_no_place([at], "it picks places of the image")
    picked: Axes = (None,) * len(indices.shapes[0]) if indices else ()
    return (*op.first.axes[:at], *picked, *op.first.axes[at + 1 :])


def _expand(op: Operation) -> Axes:
    return (None,) * (len(op.shapes[0]) - len(op.first.axes)) + op.first.axes


def _tile(op: Operation) -> Axes:
    repeats = op.values(1) or []
    if any(axis and times != 1 for axis, times in zip(op.first.axes, repeats, strict=True)):
        op.fail("it repeats the image side by side")
    return op.first.axes


def _compare_along(op: Operation) -> Axes:
    """Softmax and normalisations: values along an axis are compared with one another."""
    rank, old = len(op.first.axes), op.kind in _SOFTMAX and op.opset < 13
    axis = op.facts.get("axis", 1 if old else -1) % rank
    # Before opset 13 Softmax flattened all later axes; layers are normalised over them.
    later = old or op.kind == "LayerNormalization"
    op.require_no_place(range(axis, rank) if later else [axis], _WHOLE)
    return op.first.axes


def _look_everywhere(op: Operation) -> Axes:
    op.require_no_place(range(len(op.first.axes)), _WHOLE)
    return op.first.axes


def _reduce(op: Operation) -> Axes:
    rank = len(op.first.axes)
    if op.kind in ("ArgMax", "ArgMin"):
        stated: list[Any] | None = [op.facts.get("axis", 0)]
    else:
        stated = op.stated("axes", 1)
    if not stated and op.facts.get("noop_with_empty_axes"):
        return op.first.axes
    gone = {axis % rank for axis in stated or range(rank)}
    op.require_no_place(sorted(gone), _WHOLE)
    if op.facts.get("keepdims", 1):
        return op.first.axes
    return tuple(axis for at, axis in enumerate(op.first.axes) if at not in gone)


def _multiply_matrices(op: Operation) -> Axes:
    """By a constant, over channels."""
    left, right = op.inputs[0], op.inputs[1]
    if not left or not right or (left.from_image and right.from_image):
        op.fail("attention looks further than a margin")
    if min(len(left.axes), len(right.axes)) < 2:
        op.fail("how far it looks is not known")
    if left.axes[-1] or right.axes[-2]:
        op.fail(_WHOLE)
    heads = [
        replace(o, axes=o.axes[:-2], shapes=tuple(s[:-2] for s in o.shapes)) for o in (left, right)
    ]
    batch = _broadcast(replace(op, inputs=tuple(heads))) if any(h.axes for h in heads) else ()
    return (*batch, left.axes[-2], right.axes[-1])


def _regroup(op: Operation) -> Axes:
    """Reshape and its like: runs of axes of equal products on both sides are one group."""
    ins, outs = _columns(op.first.shapes), _columns(op.shapes)
    found: list[Axis] = [None] * len(outs)
    i = o = 0
    while i < len(ins) and o < len(outs):
        first_in, first_out = i, o
        i, o = i + 1, o + 1
        while (left := _product(ins[first_in:i])) != (right := _product(outs[first_out:o])):
            if left[0] < right[0] and i < len(ins):
                i += 1
            elif o < len(outs):
                o += 1
            else:
                op.fail("how it orders pixels is not known")
        found[first_out:o] = _regroup_run(
            op, op.first.axes[first_in:i], ins[first_in:i], outs[first_out:o]
        )
    if any(op.first.axes[i:]):
        op.fail("how it orders pixels is not known")
    return tuple(found)


def _columns(shapes: Shapes) -> list[tuple[int, ...]]:
    """Of each axis, its lengths at the measured sizes."""
    return list(zip(*shapes, strict=True))


def _product(columns: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(math.prod(lengths) for lengths in zip(*columns, strict=True))


def _regroup_run(
    op: Operation,
    axes: Axes,
    ins: Sequence[tuple[int, ...]],
    outs: Sequence[tuple[int, ...]],
) -> list[Axis]:
    """One place and channels after it, to one place and channels after it."""
    places = [at for at, axis in enumerate(axes) if axis]
    if not places:
        return [None] * len(outs)
    axis = axes[places[0]]
    leading = _product([(1,) * len(ins[0]), *ins[: places[0]]])
    if axis is None or len(places) > 1 or set(leading) != {1}:
        op.fail("it puts places of the image behind one another")
    merged = math.prod(lengths[0] for lengths in ins[places[0] + 1 :])
    place = next((at for at, lengths in enumerate(outs) if len(set(lengths)) > 1), None)
    if place is None or any(length != 1 for lengths in outs[:place] for length in lengths):
        op.fail("it puts places of the image behind one another")
    parts = math.prod(lengths[0] for lengths in outs[place + 1 :])
    if merged > 1:
        axis = axis.refined(merged)
    if parts > 1:
        axis = axis.split(parts)
    return [axis if at == place else None for at in range(len(outs))]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_WHOLE = "it looks at the whole image"
_SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")
_POINTWISE = _names(
    """Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Div Elu
    Equal Erf Exp Floor Gelu Greater
    GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max
    Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin
    Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"""
)
_REDUCTIONS = _names(
    """ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare"""
)
_GLOBAL = _names(
    """GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization InstanceNormalization
    MeanVarianceNormalization"""
)
MANY_FROM_IMAGE = {*_POINTWISE, "Concat", "MatMul"}  # whose later inputs may be of the image too
# Inputs that may change with the image's size: the lengths that they make are measured.
SIZES_AT = {"Reshape": (1,), "Expand": (1,), "Resize": (1, 3), "Slice": (2,)}

RULES: dict[str, Callable[[Operation], Axes]] = {
    **dict.fromkeys(_POINTWISE, _broadcast),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("CastLike", "QuantizeLinear", "DequantizeLinear"), _same),
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool", "LpPool"), slide_window),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _regroup),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys((*_SOFTMAX, "LayerNormalization", "LpNormalization"), _compare_along),
    **dict.fromkeys(_GLOBAL, _look_everywhere),
    "BatchNormalization": _batch_normalize,
    "Concat": _concat,
    "ConvTranspose": transpose_conv,
    "DepthToSpace": depth_to_space,
    "Dropout": _drop_out,
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _multiply_matrices,
    "Pad": pad,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
}
