"""Which operators of a model the delegates of phones refuse.

A delegate takes what it knows and leaves the rest to the CPU, with a copy of each feature map on
the way, or refuses the whole model. XNNPACK is at hand and is asked; the others are known by what
their sources accept, and no model ran on them here. Those are of TensorFlow Lite, as of 2025:
  GPU  tensorflow/lite/tools/versioning/gpu_compatibility.cc
  NPU  tensorflow/lite/delegates/nnapi/nnapi_delegate.cc, whose operators the drivers of NPUs take
       in one way or another (tensorflow/lite/delegates/hexagon/utils.cc knows fewer)
at https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from targets._litert import flatbuffer
from targets._litert.session import interpret

_RANK = 4  # dimensions of a tensor at most
_BOTH = frozenset(
    {
        *("ABS", "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D"),
        *("DEPTH_TO_SPACE", "DEQUANTIZE", "DIV", "ELU", "EXP", "HARD_SWISH", "LEAKY_RELU"),
        *("LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "NEG", "PAD", "PRELU"),
        *("QUANTIZE", "REDUCE_MAX", "RELU", "RELU6", "RELU_N1_TO_1", "RESIZE_BILINEAR"),
        *("RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SPACE_TO_DEPTH", "SQRT", "STRIDED_SLICE", "SUB"),
        *("SUM", "TANH", "TRANSPOSE_CONV"),
    }
)
_KNOWN = {"GPU": _BOTH | {"MIRROR_PAD"}, "NPU": _BOTH | {"PADV2"}}


def find_refusals(content: bytes) -> dict[str, str]:
    """By delegate what it refuses of a model, in words; "" of one that takes all of it."""
    model = flatbuffer.unpack(content)
    found = {"XNNPACK": _list(left_by_xnnpack(content))}
    graph, large = model.subgraphs[0], _large(model)
    codes = [_name(model, op) for op in graph.operators]
    for delegate, known in _KNOWN.items():
        grouped = _grouped(model) if delegate == "NPU" else []
        found[delegate] = _list([*(c for c in codes if c not in known), *grouped, *large])
    return found


def left_by_xnnpack(content: bytes) -> list[str]:
    """Names of the operators that XNNPACK leaves to LiteRT's own kernels.

    Those that compute what is needed of the result back to the image and no delegate makes.
    """
    interpreter = interpret(content)
    every = interpreter._get_ops_details()
    makers = {int(t): op for op in every for t in op["outputs"] if op["op_name"] != "DELEGATE"}
    makers |= {int(t): op for op in every for t in op["outputs"] if op["op_name"] == "DELEGATE"}
    wanted = [int(one["index"]) for one in interpreter.get_output_details()]
    seen, found = set[int](), []
    while wanted:
        op = makers.get(wanted.pop())
        if op is None or op["index"] in seen:
            continue
        seen.add(op["index"])
        wanted += [int(t) for t in op["inputs"]]
        if op["op_name"] != "DELEGATE":
            found.append(str(op["op_name"]))
    return found


def _name(model: Any, op: Any) -> str:
    codes = vars(flatbuffer.schema().BuiltinOperator).items()
    number = model.operatorCodes[op.opcodeIndex].builtinCode
    return next(str(name) for name, value in codes if value == number)


def _large(model: Any) -> list[str]:
    """What has too many dimensions."""
    tensors = model.subgraphs[0].tensors
    return [f"{len(t.shape)} dimensions" for t in tensors if len(t.shape) > _RANK]


def _grouped(model: Any) -> list[str]:
    """Convolutions of groups of channels, which NNAPI's delegate does not map."""
    graph = model.subgraphs[0]
    found = []
    for op in graph.operators:
        if _name(model, op) == "CONV_2D":
            read, weights = (graph.tensors[number].shape for number in op.inputs[:2])
            found += ["CONV_2D in groups"] if read[3] != weights[3] else []
    return found


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))
