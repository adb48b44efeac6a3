"""Rewriting of a LiteRT graph: activations into what makes them, channels into LiteRT's order."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from targets._litert.net import Array, Edge, Net, Op

_ACTIVATIONS = ("RELU", "RELU6", "RELU_N1_TO_1")
_TAKE_THEM = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "SUB", "MUL", "DIV")
_POINTWISE = ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "PRELU")
_DOT = {
    "padding": "VALID",
    "strideH": 1,
    "strideW": 1,
    "depthMultiplier": 1,
    "fusedActivationFunction": "RELU",
}
_OF_ONE = (*_ACTIVATIONS, "RELU_0_TO_1", "LEAKY_RELU", "LOGISTIC", "TANH", "GELU", "ABS", "NEG")


def fuse_activations(net: Net) -> None:
    """Let convolutions and sums compute the activation that alone reads them, in place."""
    makers, readers = net.maker(), net.readers()
    for op in list(net.ops):
        maker = makers.get(op.inputs[0])
        if op.code not in _ACTIVATIONS or maker is None or maker.code not in _TAKE_THEM:
            continue
        if len(readers[op.inputs[0]]) == 1 and "fusedActivationFunction" not in maker.options:
            maker.options["fusedActivationFunction"] = op.code
            maker.outputs = op.outputs
            makers[op.outputs[0]] = maker
            net.ops.remove(op)


def order_for_shuffle(net: Net, by_channel: Collection[str]) -> None:
    """Order what pixel shuffles read as LiteRT does, in place; `by_channel` are what they make.

    ONNX's "CRD" has the places in a block side by side, LiteRT the channels.
    """
    for op in list(net.ops):
        if op.code == "DEPTH_TO_SPACE" and op.outputs[0] in by_channel:
            channels = _channels(net, op.inputs[0])
            places = op.options["blockSize"] ** 2
            order = np.arange(channels).reshape(-1, places).T.ravel()
            op.inputs[0] = _reorder(net, op.inputs[0], order, op)


def split_slopes(net: Net) -> None:
    """Write each PRELU x as x + sign * relu(-weight * x), in place: XNNPACK knows it in no INT8.

    The weight is how far the slope is from one; the sign is -1 for slopes above one.
    """
    for op in [one for one in net.ops if one.code == "PRELU"]:
        less = 1 - net.constants[op.inputs[1]].reshape(1, 1, 1, -1)
        source, made, edge = op.inputs[0], op.outputs[0], op.edges[0]
        weights, zeros, sign, below, signed = (
            net.new(f"{made}_{part}") for part in ("weights", "zeros", "sign", "below", "signed")
        )
        net.constants |= {weights: -np.abs(less), zeros: np.zeros(less.size, np.float32)}
        parts = [_part("DEPTHWISE_CONV_2D", op, [source, weights, zeros], below, edge)]
        parts[0].options = dict(_DOT)
        if less.min() < 0:
            net.constants[sign] = np.where(less < 0, -1, 1).astype(np.float32)
            parts.append(_part("MUL", op, [below, sign], signed, None))
            below = signed
        parts.append(_part("ADD", op, [source, below], made, edge))
        at = net.ops.index(op)
        net.ops[at : at + 1] = parts


def _part(code: str, op: Op, inputs: list[str], output: str, edge: Edge | None) -> Op:
    """One of several operators in the place of `op`, as float as what makes its input."""
    edges = [edge, *[None] * (len(inputs) - 1)]
    return Op(code, op.name, inputs, [output], {}, edges, whole=False, role="follows")


def _reorder(net: Net, tensor: str, order: Array, reader: Op) -> str:
    """Change the order of a tensor's channels where it is made, if only `reader` reads it, else by
    a convolution of one pixel; gives the name of what has the order."""
    maker = net.maker().get(tensor)
    alone = len(net.readers()[tensor]) == 1 and tensor != net.result
    if maker is None or not alone or not _can_reorder(net, maker):
        return _insert_order(net, tensor, order, reader)
    if maker.code == "CONV_2D":
        maker.inputs[1:] = [_take(net, name, order, 0) for name in maker.inputs[1:]]
        return tensor
    for index, name in enumerate(maker.inputs):
        if name in net.constants:
            maker.inputs[index] = _take(net, name, order, -1)
        else:
            maker.inputs[index] = _reorder(net, name, order, maker)
    return tensor


def _can_reorder(net: Net, maker: Op) -> bool:
    if maker.code == "CONV_2D":  # channels of a group stay together
        return int(net.constants[maker.inputs[1]].shape[3]) == _channels(net, maker.inputs[0])
    if len(set(maker.inputs)) < len(maker.inputs):
        return False
    return maker.code in _OF_ONE or (maker.code in _POINTWISE and _same_channels(net, maker))


def _same_channels(net: Net, op: Op) -> bool:
    """Whether no tensor that it reads is spread over the channels of another."""
    counts = [_channels(net, name) for name in op.inputs if name not in net.constants]
    return len(set(counts)) == 1


def _take(net: Net, name: str, order: Array, axis: int) -> str:
    values = net.constants[name]
    if values.shape[axis] == 1 < len(order):
        return name
    made = net.new(name)
    net.constants[made] = np.ascontiguousarray(np.take(values, order, axis))
    return made


def _insert_order(net: Net, tensor: str, order: Array, reader: Op) -> str:
    count = len(order)
    weights = np.zeros((count, 1, 1, count), np.float32)
    weights[range(count), 0, 0, order] = 1
    made = net.new(f"{tensor}_ordered")
    names = [net.new(f"{made}_order"), net.new(f"{made}_bias")]
    net.constants.update(zip(names, (weights, np.zeros(count, np.float32)), strict=True))
    edge = reader.edges[reader.inputs.index(tensor)]
    options = {"padding": "VALID", "strideH": 1, "strideW": 1}
    conv = Op("CONV_2D", reader.name, [tensor, *names], [made], options, [edge, None, None])
    conv.role = "moves"
    net.ops.insert(net.ops.index(reader), conv)
    return made


def _channels(net: Net, tensor: str) -> int:
    return net.channels[tensor]
