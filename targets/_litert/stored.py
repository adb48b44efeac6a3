"""How a LiteRT model stores and takes its numbers: weights in 16 bits, images in 8."""

from __future__ import annotations

import numpy as np

from targets._litert.net import Grid, Net, Op

BYTES_NOTE = "takes and gives {}, NHWC, RGB: range, clipping and rounding are in the model"
FP16_NOTE = "weights are stored in 16 bits; CPUs compute in 32, GPUs and NPUs as they please"
_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
_STEP = np.array([1 / 255], np.float32)
_DARKEST = {"uint8": 0, "int8": -128}


def store_fp16(net: Net) -> None:
    """Store the weights of convolutions in FP16, each behind an operator that widens it, in place.

    Those that FP16 does not hold stay as they are.
    """
    read = [n for op in net.ops if op.code in _PRODUCTS for n in op.inputs if n in net.constants]
    for name in dict.fromkeys(read):
        values = net.constants[name]
        if values.dtype != np.float32 or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            continue
        narrow = net.new(f"{name}_fp16")
        net.constants[narrow] = values.astype(np.float16)
        del net.constants[name]
        net.ops.insert(0, Op("DEQUANTIZE", name, [narrow], [name], edges=[None]))


def take_bytes(net: Net, kind: str) -> None:
    """Let the model take and give levels as "uint8", or less 128 as "int8", in place."""
    body, result = net.new(f"{net.image}_float"), net.result
    readers = net.readers()[net.image]
    for op, index in readers:
        if op.code != "QUANTIZE":
            op.inputs[index] = body
    if any(op.code != "QUANTIZE" for op, _ in readers):
        net.ops.insert(0, Op("DEQUANTIZE", net.image, [net.image], [body], edges=[None]))
    last = net.maker()[result]
    if last.code == "DEQUANTIZE":
        last.code = "QUANTIZE"
    else:
        last.outputs = [net.new(f"{result}_float")]
        for op, index in net.readers().get(result, []):
            op.inputs[index] = last.outputs[0]
        net.ops.append(Op("QUANTIZE", result, list(last.outputs), [result], edges=[None]))
    net.kinds |= dict.fromkeys((net.image, result), kind.upper())
    net.grids |= dict.fromkeys((net.image, result), Grid(_STEP, _DARKEST[kind]))
