"""Convolutions of ONNX in LiteRT's layouts of weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from targets._litert.from_onnx import Builder, attributes, refuse
from targets._litert.net import Array
from targets._litert.pads import is_same, no_pads, pad_before
from targets._litert.slices import strided_slice


def conv(builder: Builder, node: Any) -> None:
    """A convolution; one of each channel alone has an operator of its own."""
    stated = attributes(node)
    weights = _weights(builder, node)
    strides, dilations = stated.get("strides", [1, 1]), stated.get("dilations", [1, 1])
    source, padding = node.input[0], "VALID"
    if not no_pads(stated):
        padding = "SAME" if is_same(stated, weights.shape[2:]) else "VALID"
        if padding == "VALID":
            source = pad_before(builder, node, stated["pads"])
    options = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
    }
    groups, written = stated.get("group", 1), weights.shape[0]
    code, turned = "CONV_2D", weights.transpose(0, 2, 3, 1)
    if groups > 1 and weights.shape[1] == 1:
        code, turned = "DEPTHWISE_CONV_2D", weights.transpose(1, 2, 3, 0)
        options["depthMultiplier"] = written // groups
    names = [builder.constant(node.input[1], turned), _bias(builder, node, written)]
    builder.add(code, node, [source, *names], **options)
    if source != node.input[0]:
        builder.net.ops[-1].edges[0] = builder.net.ops[-2].edges[0]


def conv_transpose(builder: Builder, node: Any) -> None:
    """A transposed convolution, whose output's size is a constant of its own.

    LiteRT computes all that the kernel reaches, or SAME, which is cut off alike on both sides; what
    ONNX cuts off otherwise is cut off afterwards.
    """
    stated, name = attributes(node), node.output[0]
    weights, strides = _weights(builder, node), stated.get("strides", [1, 1])
    if stated.get("group", 1) != 1 or any(d != 1 for d in stated.get("dilations", [1, 1])):
        raise refuse(node, "with groups or dilations")
    cut = _cut(node, stated)
    around = [k - s for k, s in zip(weights.shape[2:], strides, strict=True)]
    same = all(a == sum(c) and c[0] == a // 2 for a, c in zip(around, cut, strict=True))
    whole = not same and any(map(any, cut))
    size = builder.constant(f"{name}_size", [1, 0, 0, weights.shape[1]], np.int32)
    sides = [
        replace(side, add=side.add + side.over * (sum(c) if whole else 0))
        for side, c in zip(builder.sizes[name], cut, strict=True)
    ]
    builder.net.sizes[size] = (sides[0], sides[1])
    turned = builder.constant(node.input[1], weights.transpose(1, 2, 3, 0))
    inputs = [size, turned, node.input[0], _bias(builder, node, weights.shape[1])]
    padding = "SAME" if same and any(around) else "VALID"
    options = {"padding": padding, "strideH": strides[0], "strideW": strides[1]}
    made = builder.add("TRANSPOSE_CONV", node, inputs, f"{name}_whole" if whole else "", **options)
    if whole:
        (top, bottom), (left, right) = cut
        bounds = ([0, top, left, 0], [0, -bottom, -right, 0], [1] * 4)
        mask = 0b1001 | (0 if bottom else 0b0010) | (0 if right else 0b0100)
        strided_slice(builder, node, made, name, bounds, 0b1001, mask)


def _cut(node: Any, stated: dict[str, Any]) -> list[tuple[int, int]]:
    """What a transposed convolution leaves out, before and after, along height and width."""
    if stated.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise refuse(node, "auto_pad")
    pads, more = stated.get("pads", [0] * 4), stated.get("output_padding", [0, 0])
    found = [(pads[axis], pads[axis + 2] - more[axis]) for axis in (0, 1)]
    if any(after < 0 for _, after in found):
        raise refuse(node, f"pads {list(pads)}, output_padding {list(more)}")
    return found


def _weights(builder: Builder, node: Any) -> Array:
    found = builder.values.get(node.input[1])
    if found is None:
        raise refuse(node, "weights that are computed")
    if found.ndim != 4:
        raise refuse(node, f"{found.ndim - 2} dimensions")
    if attributes(node).get("auto_pad", b"NOTSET") == b"SAME_LOWER":
        raise refuse(node, "auto_pad SAME_LOWER")
    return found


def _bias(builder: Builder, node: Any, written: int) -> str:
    given = node.input[2] if len(node.input) > 2 else ""
    if given and given not in builder.values:
        raise refuse(node, "a bias that is computed")
    values = builder.values[given] if given else np.zeros(written, np.float32)
    return builder.constant(given or f"{node.input[1]}_bias", values)
