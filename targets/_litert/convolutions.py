"""Convolutions of ONNX in LiteRT's layouts of weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from targets._litert.from_onnx import Builder, attributes, refuse
from targets._litert.net import Array
from targets._litert.pads import is_same, no_pads, pad_before


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
    """A transposed convolution, whose output's size is a constant of its own."""
    stated = attributes(node)
    weights = _weights(builder, node)
    strides = stated.get("strides", [1, 1])
    pads, kernel = stated.get("pads", [0] * 4), weights.shape[2:]
    if stated.get("group", 1) != 1 or any(d != 1 for d in stated.get("dilations", [1, 1])):
        raise refuse(node, "with groups or dilations")
    same = [k - s == a + b for k, s, a, b in zip(kernel, strides, pads[:2], pads[2:], strict=True)]
    even = list(pads[:2]) == [sum(pair) // 2 for pair in zip(pads[:2], pads[2:], strict=True)]
    valid = not any(pads) and not any(stated.get("output_padding", ()))
    if not valid and not (all(same) and even and not any(stated.get("output_padding", ()))):
        raise refuse(node, f"pads {list(pads)}")
    name, written = node.output[0], weights.shape[1]
    size = builder.constant(f"{name}_size", [1, 0, 0, written], np.int32)
    builder.net.sizes[size] = builder.sizes[name]
    turned = builder.constant(node.input[1], weights.transpose(1, 2, 3, 0))
    inputs = [size, turned, node.input[0], _bias(builder, node, written)]
    builder.add(
        "TRANSPOSE_CONV",
        node,
        inputs,
        padding="VALID" if valid else "SAME",
        strideH=strides[0],
        strideW=strides[1],
    )


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
