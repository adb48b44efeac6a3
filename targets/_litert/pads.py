"""Padding: LiteRT's two words for it, SAME and VALID, and operators of its own for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from targets._litert.from_onnx import Builder, attributes, refuse


def no_pads(stated: Mapping[str, Any]) -> bool:
    """Whether a convolution or pooling pads nothing."""
    automatic = stated.get("auto_pad", b"NOTSET")
    return automatic == b"VALID" or (automatic == b"NOTSET" and not any(stated.get("pads", ())))


def is_same(stated: Mapping[str, Any], kernel: Sequence[int]) -> bool:
    """Whether the pads are those of SAME at every size: half the kernel, with strides of one."""
    automatic = stated.get("auto_pad", b"NOTSET")
    strides, dilations = stated.get("strides", [1, 1]), stated.get("dilations", [1, 1])
    if automatic == b"SAME_UPPER":
        return True
    if automatic != b"NOTSET" or any(s != 1 for s in strides):
        return False
    around = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    half = [whole / 2 for whole in around]
    return list(stated.get("pads", [0] * 4)) == [*half, *half]


def pool_padding(node: Any, stated: Mapping[str, Any]) -> str:
    """SAME or VALID of a pooling."""
    if no_pads(stated):
        return "VALID"
    if is_same(stated, stated["kernel_shape"]):
        return "SAME"
    raise refuse(node, f"pads {list(stated.get('pads', ()))}")


def pad_before(builder: Builder, node: Any, pads: Sequence[int]) -> str:
    """Add zeros around what a convolution reads; gives the padded tensor's name."""
    top, left, bottom, right = pads
    sides = [[0, 0], [top, bottom], [left, right], [0, 0]]
    name = builder.constant(f"{node.output[0]}_pads", sides, np.int32)
    return builder.add("PAD", node, [node.input[0], name], f"{node.output[0]}_padded")


def pad(builder: Builder, node: Any) -> None:
    """ONNX's Pad: zeros or another constant around an image, mirrored ones, or more channels."""
    sides, value, mode = _facts(builder, node)
    source = node.input[0]
    if not any(map(any, sides)):
        builder.alias(node)
        return
    if any(sides[0]) or min(map(min, sides)) < 0 or source in builder.last:
        raise refuse(node, f"pads {sides}")
    if mode == "constant" and value and any(sides[1]) and not any(map(any, sides[2:])):
        _add_channels(builder, node, sides[1], value)
        return
    turned = [sides[axis] for axis in (0, 2, 3, 1)]
    name = builder.constant(f"{node.output[0]}_pads", turned, np.int32)
    if mode == "reflect":
        builder.add("MIRROR_PAD", node, [source, name], mode="REFLECT")
    elif mode != "constant":
        raise refuse(node, mode)
    elif value:
        filled = builder.constant(f"{node.output[0]}_value", value)
        builder.add("PADV2", node, [source, name, filled])
    else:
        builder.add("PAD", node, [source, name])


def _facts(builder: Builder, node: Any) -> tuple[list[list[int]], float, str]:
    stated = attributes(node)
    given = stated.get("pads")
    if given is None and len(node.input) > 1:
        given = builder.values.get(node.input[1])
    if given is None:
        raise refuse(node, "sizes that are computed")
    value = float(stated.get("value", 0.0))
    if len(node.input) > 2 and node.input[2]:
        value = float(builder.values[node.input[2]].reshape(()))
    begin, end = np.reshape(given, (2, -1)).tolist()
    if len(node.input) > 3 and node.input[3]:
        axes = builder.values[node.input[3]].tolist()
        every = [[0, 0] for _ in range(4)]
        for axis, low, high in zip(axes, begin, end, strict=True):
            every[axis % 4] = [low, high]
    else:
        every = [[low, high] for low, high in zip(begin, end, strict=True)]
    return every, value, stated.get("mode", b"constant").decode()


def _add_channels(builder: Builder, node: Any, sides: list[int], value: float) -> None:
    """Channels of a constant, by a convolution of one pixel: its bias makes them.

    LiteRT's PADV2 is known to few delegates.
    """
    channels = builder.channels(node.input[0])
    before, after = sides
    weights = np.zeros((before + channels + after, 1, 1, channels), np.float32)
    weights[range(before, before + channels), 0, 0, range(channels)] = 1
    bias = np.full(len(weights), value, np.float32)
    bias[before : before + channels] = 0
    names = [
        builder.constant(f"{node.output[0]}_{part}", values)
        for part, values in (("ones", weights), ("value", bias))
    ]
    builder.add(
        "CONV_2D",
        node,
        [node.input[0], *names],
        padding="VALID",
        strideH=1,
        strideW=1,
    )
    builder.net.ops[-1].role = "moves"
