"""What each ONNX operator becomes in LiteRT.

Only operators that phones' delegates know are made: none has more than four dimensions, and none
gathers, selects or transposes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from targets._litert.convolutions import conv, conv_transpose
from targets._litert.from_onnx import AXES, Builder, attributes, follow_layout, refuse
from targets._litert.pads import no_pads, pad, pool_padding
from targets._litert.slices import split, take_slice

Rule = Callable[[Builder, Any], None]

_JOINED = 4  # tensors that XNNPACK joins at a time
_FEW = 16  # channels that a convolution may repeat: more are faster resized on the CPU


def _binary(code: str) -> Rule:
    def rule(builder: Builder, node: Any) -> None:
        builder.add(code, node, [builder.operand(node, 0), builder.operand(node, 1)])
        follow_layout(builder, node)

    return rule


def _unary(code: str, **options: Any) -> Rule:
    def rule(builder: Builder, node: Any) -> None:
        builder.add(code, node, [node.input[0]], **options)
        follow_layout(builder, node)

    return rule


def _alias(builder: Builder, node: Any) -> None:
    builder.alias(node)
    follow_layout(builder, node)


def _leaky(builder: Builder, node: Any) -> None:
    builder.add("LEAKY_RELU", node, [node.input[0]], alpha=attributes(node).get("alpha", 0.01))


def _prelu(builder: Builder, node: Any) -> None:
    slope = builder.values.get(node.input[1])
    if slope is None:
        raise refuse(node, "slopes that are computed")
    if slope.size == 1:
        builder.add("LEAKY_RELU", node, [node.input[0]], alpha=float(slope.reshape(())))
        return
    whole = slope.reshape((-1, *(1,) * 2)) if slope.ndim == 1 else slope.reshape(slope.shape[-3:])
    alpha = builder.constant(node.input[1], whole.transpose(1, 2, 0))
    builder.add("PRELU", node, [node.input[0], alpha])


def _gelu(builder: Builder, node: Any) -> None:
    by_tanh = attributes(node).get("approximate", b"none") == b"tanh"
    builder.add("GELU", node, [node.input[0]], approximate=by_tanh)


def _hard_swish(builder: Builder, node: Any) -> None:
    builder.add("HARD_SWISH", node, [node.input[0]])


def _clip(builder: Builder, node: Any) -> None:
    stated = attributes(node)
    bounds = []
    for index, name in ((1, "min"), (2, "max")):
        given = node.input[index] if len(node.input) > index else ""
        if given and given not in builder.values:
            raise refuse(node, "bounds that are computed")
        bounds.append(float(builder.values[given].reshape(())) if given else stated.get(name))
    least, most = (None if b is None or abs(b) > 3e38 else b for b in bounds)
    known = {(0.0, None): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    if least is not None and (code := known.get((least, most))):
        builder.add(code, node, [node.input[0]])
        return
    source = node.input[0]
    if (least, most) == (0.0, 1.0):  # RELU_0_TO_1 is known to no delegate, and MINIMUM takes time
        source = builder.add("RELU_N1_TO_1", node, [source], f"{node.output[0]}_below")
        builder.add("RELU", node, [source])
        return
    if least is not None:
        bound = builder.constant(f"{node.name}_least", [[[[least]]]])
        middle = f"{node.output[0]}_above" if most is not None else ""
        source = builder.add("MAXIMUM", node, [source, bound], middle)
    if most is not None:
        bound = builder.constant(f"{node.name}_most", [[[[most]]]])
        builder.add("MINIMUM", node, [source, bound])
    if least is None and most is None:
        builder.alias(node)


def _concat(builder: Builder, node: Any) -> None:
    axis = attributes(node)["axis"] % 4
    if any(name in builder.values for name in node.input):
        raise refuse(node, "of constants")
    turned = any(name in builder.last for name in node.input)
    axis = axis if turned else AXES[axis]
    names = list(node.input)
    while len(names) > _JOINED:
        part = f"{node.output[0]}_part"
        names[:_JOINED] = [builder.add("CONCATENATION", node, names[:_JOINED], part, axis=axis)]
    builder.add("CONCATENATION", node, names, axis=axis)
    follow_layout(builder, node)


def _depth_to_space(builder: Builder, node: Any) -> None:
    stated = attributes(node)
    by_channel = stated.get("mode", b"DCR") == b"CRD"
    size = stated["blocksize"]
    builder.add("DEPTH_TO_SPACE", node, [node.input[0]], blockSize=size)
    if by_channel:  # LiteRT knows the other order only
        builder.by_channel.add(builder.tensor(node.output[0]))


def _space_to_depth(builder: Builder, node: Any) -> None:
    builder.add("SPACE_TO_DEPTH", node, [node.input[0]], blockSize=attributes(node)["blocksize"])


def _reduce(code: str) -> Rule:
    def rule(builder: Builder, node: Any) -> None:
        stated = attributes(node)
        axes = stated.get("axes")
        if len(node.input) > 1 and node.input[1] in builder.values:
            axes = builder.values[node.input[1]].tolist()
        if axes is None or not stated.get("keepdims", 1):
            raise refuse(node, "that drops dimensions")
        turned = [a % 4 if node.input[0] in builder.last else AXES[a % 4] for a in axes]
        _add_reduction(builder, node, code, turned)

    return rule


def _pool_all(code: str) -> Rule:
    return lambda builder, node: _add_reduction(builder, node, code, [1, 2])


def _add_reduction(builder: Builder, node: Any, code: str, axes: list[int]) -> None:
    name = builder.constant(f"{node.output[0]}_axes", sorted(axes), np.int32)
    builder.add(code, node, [node.input[0], name], keepDims=True)
    follow_layout(builder, node)


def _pool(code: str) -> Rule:
    def rule(builder: Builder, node: Any) -> None:
        stated = attributes(node)
        if stated.get("ceil_mode", 0) or any(d != 1 for d in stated.get("dilations", ())):
            raise refuse(node, "with ceil_mode or dilations")
        if code == "AVERAGE_POOL_2D" and stated.get("count_include_pad", 0) and not no_pads(stated):
            raise refuse(node, "that counts its padding")
        height, width = stated["kernel_shape"]
        strides = stated.get("strides", [1, 1])
        builder.add(
            code,
            node,
            [node.input[0]],
            padding=pool_padding(node, stated),
            strideH=strides[0],
            strideW=strides[1],
            filterHeight=height,
            filterWidth=width,
        )

    return rule


def _resize(builder: Builder, node: Any) -> None:
    stated = attributes(node)
    mode = stated.get("mode", b"nearest").decode()
    how = stated.get("coordinate_transformation_mode", b"half_pixel").decode()
    if mode not in ("nearest", "linear") or stated.get("antialias", 0):
        raise refuse(node, mode)
    sides = builder.sizes[node.output[0]]
    if node.op_type == "Upsample":
        how = "asymmetric"
    options = {"alignCorners": how == "align_corners", "halfPixelCenters": "half_pixel" in how}
    if mode == "nearest":
        rounding = stated.get("nearest_mode", b"round_prefer_floor").decode()
        exact = all(side.times % side.over == 0 and not side.add for side in sides)
        centred = exact and "half_pixel" in how and rounding.startswith("round")
        if not centred and (how, rounding) != ("asymmetric", "floor"):
            raise refuse(node, f"nearest, {how}, {rounding}")
        options = {"alignCorners": False, "halfPixelCenters": False}
        if exact and _repeat(builder, node):
            return
    code = "RESIZE_BILINEAR" if mode == "linear" else "RESIZE_NEAREST_NEIGHBOR"
    name = builder.constant(f"{node.output[0]}_size", [0, 0], np.int32)
    builder.net.sizes[name] = sides
    builder.add(code, node, [node.input[0], name], **options)


def _repeat(builder: Builder, node: Any) -> bool:
    """Repeat each pixel, of a tensor of few channels, by a convolution and a pixel shuffle: XNNPACK
    knows no RESIZE_NEAREST_NEIGHBOR. Gives whether it could."""
    scales = builder.values.get(node.input[2 if node.op_type == "Resize" else 1])
    channels = builder.channels(node.input[0])
    if scales is None or scales.size != 4 or not 0 < channels <= _FEW:
        return False
    times = int(scales[3])
    if times < 2 or scales.tolist() != [1, 1, times, times]:
        return False
    weights = np.tile(np.eye(channels, dtype=np.float32), (times**2, 1))[:, None, None, :]
    names = [
        builder.constant(f"{node.output[0]}_{part}", values)
        for part, values in (("ones", weights), ("zeros", np.zeros(len(weights))))
    ]
    repeated, inputs = f"{node.output[0]}_repeated", [node.input[0], *names]
    source = builder.add("CONV_2D", node, inputs, repeated, padding="VALID", strideH=1, strideW=1)
    builder.net.ops[-1].role = "moves"
    builder.add("DEPTH_TO_SPACE", node, [source], blockSize=times)
    return True


def _transpose(builder: Builder, node: Any) -> None:
    turn = list(attributes(node).get("perm", ()))
    last = node.input[0] in builder.last
    if turn not in ([0, 3, 1, 2], [0, 2, 3, 1]) or last != (turn == [0, 3, 1, 2]):
        raise refuse(node, f"perm {turn}")
    builder.alias(node)
    if not last:
        builder.last.add(node.output[0])


def _layer_norm(builder: Builder, node: Any) -> None:
    """Mean and variance over the channels, step by step."""
    stated = attributes(node)
    if node.input[0] not in builder.last or stated.get("axis", -1) not in (-1, 3):
        raise refuse(node, "over other axes than the channels")
    axes = builder.constant(f"{node.name}_axes", [3], np.int32)
    epsilon = builder.constant(f"{node.name}_epsilon", [[[[stated.get("epsilon", 1e-5)]]]])
    add, source = builder.add, node.input[0]
    mean = add("MEAN", node, [source, axes], f"{node.name}_mean", keepDims=True)
    centred = add("SUB", node, [source, mean], f"{node.name}_centred")
    square = add("MUL", node, [centred, centred], f"{node.name}_square")
    variance = add("MEAN", node, [square, axes], f"{node.name}_variance", keepDims=True)
    positive = add("ADD", node, [variance, epsilon], f"{node.name}_positive")
    rate = add("RSQRT", node, [positive], f"{node.name}_rate")
    plain = add("MUL", node, [centred, rate], f"{node.name}_plain")
    gain = builder.operand(node, 1)
    if len(node.input) > 2:
        plain = add("MUL", node, [plain, gain], f"{node.name}_scaled")
        add("ADD", node, [plain, builder.operand(node, 2)])
    else:
        add("MUL", node, [plain, gain])
    builder.last.add(node.output[0])
    builder.mark_parts(node)


def _batch_norm(builder: Builder, node: Any) -> None:
    """As it is in inference: a factor and a shift of each channel."""
    if node.input[0] in builder.last or any(name not in builder.values for name in node.input[1:]):
        raise refuse(node, "in training, or of another layout")
    gain, shift, mean, variance = (builder.values[name] for name in node.input[1:5])
    factor = gain / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    names = [
        builder.constant(f"{node.name}_{part}", values.reshape(1, 1, 1, -1))
        for part, values in (("factor", factor), ("shift", shift - mean * factor))
    ]
    scaled = builder.add("MUL", node, [node.input[0], names[0]], f"{node.output[0]}_scaled")
    builder.add("ADD", node, [scaled, names[1]])
    builder.mark_parts(node)


def _pow(builder: Builder, node: Any) -> None:
    power = builder.values.get(node.input[1])
    if power is None or power.size != 1 or float(power.reshape(())) not in (0.5, 2.0):
        raise refuse(node, "of other powers than 2 and 0.5")
    if float(power.reshape(())) == 0.5:
        builder.add("SQRT", node, [node.input[0]])
    else:
        builder.add("MUL", node, [node.input[0]] * 2)
    builder.mark_parts(node)
    follow_layout(builder, node)


RULES: dict[str, Rule] = {
    "Abs": _unary("ABS"),
    "Add": _binary("ADD"),
    "AveragePool": _pool("AVERAGE_POOL_2D"),
    "BatchNormalization": _batch_norm,
    "Cast": _alias,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Div": _binary("DIV"),
    "Dropout": _alias,
    "Elu": _unary("ELU"),
    "Exp": _unary("EXP"),
    "Gelu": _gelu,
    "GlobalAveragePool": _pool_all("MEAN"),
    "GlobalMaxPool": _pool_all("REDUCE_MAX"),
    "HardSwish": _hard_swish,
    "Identity": _alias,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _leaky,
    "MaxPool": _pool("MAX_POOL_2D"),
    "Mul": _binary("MUL"),
    "Neg": _unary("NEG"),
    "PRelu": _prelu,
    "Pad": pad,
    "Pow": _pow,
    "ReduceMax": _reduce("REDUCE_MAX"),
    "ReduceMean": _reduce("MEAN"),
    "ReduceSum": _reduce("SUM"),
    "Relu": _unary("RELU"),
    "Resize": _resize,
    "Sigmoid": _unary("LOGISTIC"),
    "Slice": take_slice,
    "SpaceToDepth": _space_to_depth,
    "Split": split,
    "Sqrt": _unary("SQRT"),
    "Sub": _binary("SUB"),
    "Tanh": _unary("TANH"),
    "Transpose": _transpose,
    "Upsample": _resize,
}
