"""Write and read `.tflite` files by the schema that LiteRT's package brings along.

Only numpy and ai-edge-litert are needed: a model is rewritten for each size on the device.
Shapes: N batch, H W low-res size, C channels; NHWC.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mipkd.core.errors import UsageError
from targets._litert.net import Array, Grid, Net, Op, Side

_MARK = b"TFL3"
_RANK = 4  # dimensions of an image
_WRONG = (MemoryError, TypeError, ValueError)  # what a damaged file causes
_SIZES = "mipkd.sizes"  # the metadata that names constants which depend on the image's size
_TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
}
_OPTIONS = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "GELU": "GeluOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MIRROR_PAD": "MirrorPadOptions",
    "MUL": "MulOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "QUANTIZE": "QuantizeOptions",
    "REDUCE_MAX": "ReducerOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
}
# The version of an operator says which runtimes know it; that of its 8-bit kind is a later one.
_INT8_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "SUB": 3, "RESIZE_BILINEAR": 3}
_INT8_VERSIONS |= {"RESIZE_NEAREST_NEIGHBOR": 3, "TRANSPOSE_CONV": 3, "RELU_0_TO_1": 1, "PRELU": 1}
_FLOAT_VERSIONS = {"TRANSPOSE_CONV": 3, "RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3}


def schema() -> Any:
    """The module of the schema's tables."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def write(net: Net) -> bytes:
    """A graph as a file; its tensors have no sizes yet but for the constants."""
    s = schema()
    writer = _Writer(s, net)
    graph = s.SubGraphT()
    read = {name for op in net.ops for name in op.inputs}
    constants = [name for name in net.constants if name in read]
    for name in [net.image, *constants, *(o for op in net.ops for o in op.outputs)]:
        writer.add_tensor(name)
    graph.tensors = writer.tensors
    graph.inputs, graph.outputs = [writer.index[net.image]], [writer.index[net.result]]
    graph.operators = [writer.operator(op) for op in net.ops]
    graph.name = b"main"
    model = s.ModelT()
    model.version, model.description = 3, b"mipkd-pipeline"
    model.operatorCodes, model.subgraphs = writer.codes, [graph]
    sizes = {
        n: [[x.times, x.over, x.add] for x in sides] for n, sides in net.sizes.items() if n in read
    }
    about = s.MetadataT()
    about.name, about.buffer = _SIZES.encode(), writer.add_buffer(json.dumps(sizes).encode())
    model.metadata, model.buffers = [about], writer.buffers
    return pack(model)


def pack(model: Any) -> bytes:
    """A model as the bytes of a file."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), _MARK)
    return bytes(builder.Output())


def unpack(content: bytes) -> Any:
    """A file's model, its buffers as views of `content`.

    Raises:
        UsageError: it is no such file.
    """
    try:
        if content[4:8] != _MARK:
            raise ValueError("it begins otherwise")
        model = schema().ModelT.InitFromPackedBuf(content)
        graph = model.subgraphs[0]
        for number in (*graph.inputs, *graph.outputs):
            if len(graph.tensors[number].shape) != _RANK:
                raise ValueError("what it takes or gives is no image")
        return model
    except (struct.error, ArithmeticError, AttributeError, LookupError, *_WRONG) as error:
        what = f"litert: no LiteRT model: {error}"
        raise UsageError(what, hint="give the .tflite that a run built") from error


def set_sizes(model: Any, image_NHWC: Sequence[int], shapes: Mapping[int, Sequence[int]]) -> None:
    """State the sizes of all tensors for an image, in place: `shapes` by their number."""
    tensors = model.subgraphs[0].tensors
    for number, shape in shapes.items():
        tensors[number].shape = [int(side) for side in shape]
    set_constants(model, image_NHWC)


def set_constants(model: Any, image_NHWC: Sequence[int]) -> None:
    """Give the constants that hold a height and width those of an image, in place."""
    numbers = {tensor.name: number for number, tensor in enumerate(model.subgraphs[0].tensors)}
    for name, sides in _sizes_in(model).items():
        tensor = model.subgraphs[0].tensors[numbers[name.encode()]]
        held = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int32).copy()
        height, width = (x.of(side) for x, side in zip(sides, image_NHWC[1:3], strict=True))
        if len(held) == 2:
            held[:] = height, width
        else:
            held[:3] = image_NHWC[0], height, width
        model.buffers[tensor.buffer].data = held.view(np.uint8)


def _sizes_in(model: Any) -> dict[str, tuple[Side, Side]]:
    for one in model.metadata or ():
        if one.name == _SIZES.encode():
            stated = json.loads(bytes(model.buffers[one.buffer].data))
            return {name: (Side(*h), Side(*w)) for name, (h, w) in stated.items()}
    return {}


class _Writer:
    """Tensors, buffers and operator codes of a file, each once."""

    def __init__(self, s: Any, net: Net) -> None:
        self._schema, self._net = s, net
        self.tensors: list[Any] = []
        self.buffers: list[Any] = []
        self.codes: list[Any] = []
        self.index: dict[str, int] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self.add_buffer(None)  # the first one is that of tensors without values

    def add_buffer(self, content: bytes | None) -> int:
        buffer = self._schema.BufferT()
        if content is not None:
            buffer.data = np.frombuffer(content, np.uint8)
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def add_tensor(self, name: str) -> None:
        tensor, held = self._schema.TensorT(), self._net.constants.get(name)
        tensor.name, tensor.hasRank = name.encode(), True
        kind = self._net.kinds.get(name, "FLOAT32") if held is None else _TYPES[held.dtype.name]
        tensor.type = getattr(self._schema.TensorType, kind)
        tensor.shape = [1, 1, 1, 1] if held is None else list(held.shape)
        tensor.buffer = 0 if held is None else self._store(held)
        if name in self._net.grids:
            tensor.quantization = self._grid(self._net.grids[name])
        self.index[name] = len(self.tensors)
        self.tensors.append(tensor)

    def _store(self, held: Array) -> int:
        return self.add_buffer(np.ascontiguousarray(held).tobytes())

    def _grid(self, grid: Grid) -> Any:
        found = self._schema.QuantizationParametersT()
        found.scale = np.atleast_1d(grid.scale).astype(np.float32)
        found.zeroPoint = np.full(len(found.scale), grid.zero_point, np.int64)
        found.quantizedDimension = grid.axis
        return found

    def operator(self, op: Op) -> Any:
        s, made = self._schema, self._schema.OperatorT()
        made.opcodeIndex = self._code(op)
        made.inputs = [self.index[name] if name else -1 for name in op.inputs]
        made.outputs = [self.index[name] for name in op.outputs]
        if table := _OPTIONS.get(op.code, ""):
            made.builtinOptionsType = getattr(s.BuiltinOptions, table)
            made.builtinOptions = getattr(s, f"{table}T")()
            for name, value in op.options.items():
                setattr(made.builtinOptions, name, _value(s, name, value))
        return made

    def _code(self, op: Op) -> int:
        version = self._version(op)
        if (op.code, version) not in self._numbers:
            number = getattr(self._schema.BuiltinOperator, op.code)
            code = self._schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
            code.version = version
            self._numbers[op.code, version] = len(self.codes)
            self.codes.append(code)
        return self._numbers[op.code, version]

    def _version(self, op: Op) -> int:
        kinds = [self._net.kinds.get(name, "") for name in (*op.inputs, *op.outputs)]
        held = [self._net.constants[n].dtype.name for n in op.inputs if n in self._net.constants]
        if op.code == "DEQUANTIZE" and "float16" in held:
            return 3
        if op.code == "QUANTIZE":
            return 2 if all(kinds) else 1
        if "INT8" in kinds:
            return _INT8_VERSIONS.get(op.code, 2)
        return _FLOAT_VERSIONS.get(op.code, 1)


def _value(s: Any, name: str, value: Any) -> Any:
    """A name of the schema as its number."""
    if name == "padding":
        return getattr(s.Padding, value)
    if name == "fusedActivationFunction":
        return getattr(s.ActivationFunctionType, value)
    return getattr(s.MirrorPadMode, value) if name == "mode" else value
