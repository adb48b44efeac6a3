"""Conversion of an ONNX graph to 16-bit floats, and a test of whether FP16's range suffices.

For runtimes that compute in the types the graph states. Images stay float32 at both ends, and
so do the pointwise operations between an image and the convolution next to it: 16 bits there
would round the picture itself, a convolution's input or output only a correction to it. Float32
stays too what lies between quantizers, with their scales: an INT8 kernel computes it as integers,
and TensorRT does not build FP16 scales on every GPU (its issue 4832, on Jetson Orin).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

FP16, BF16 = "fp16", "bf16"
GREATEST = 32768.0  # half of FP16's range: photos can go further than the images probed
BF16_OPSET = 22  # the first in which convolutions may be BF16
_PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Peaks:
    """The greatest absolute value of each float tensor, over all images probed."""

    values: dict[str, float]

    @property
    def too_large(self) -> dict[str, float]:
        """Those that FP16 does not hold with room to spare, the greatest first."""
        over = [name for name, value in self.values.items() if value > GREATEST]
        return {name: self.values[name] for name in sorted(over, key=lambda n: -self.values[n])}


def find_peaks(file: Path, images: Iterable[npt.NDArray[np.float32]]) -> Peaks:
    """The greatest values that the graph of `file` computes from `images`, float32 NCHW."""
    import onnx
    import onnxruntime

    model = onnx.load(file)
    floats = _types(model)
    made = [
        t for n in model.graph.node for t in n.output if floats.get(t) == onnx.TensorProto.FLOAT
    ]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    found = dict.fromkeys(made, 0.0)
    for image in images:
        for tensor, value in zip(made, session.run(None, {name: image}), strict=True):
            most = float(np.abs(value).max(initial=0, where=np.isfinite(value)))
            found[tensor] = max(found[tensor], most)
    return Peaks(found)


def extreme_images(side: int) -> list[npt.NDArray[np.float32]]:
    """Images that drive a net hard: white, black, noise, a chessboard; `side` pixels."""
    board = np.indices((side, side)).sum(0) % 2
    noise = np.random.default_rng(0).random((1, 3, side, side), np.float32)
    flat = [np.full((1, 3, side, side), v, np.float32) for v in (0, 1)]
    return [*flat, noise, np.broadcast_to(board, (1, 3, side, side)).astype(np.float32)]


def convert_to_16_bits(model: Any, kind: str, full: Collection[str] = ()) -> Any:
    """A copy of an ONNX model that computes in `kind`, FP16 or BF16, wherever ONNX allows it.

    Nodes that make or read a tensor of `full` stay float32.

    Raises:
        UnsupportedError: the model has branches or loops.
    """
    import onnx
    from onnx import version_converter

    if kind == BF16 and opset_of(model) < BF16_OPSET:
        model = version_converter.convert_version(model, BF16_OPSET)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return _Halver(copy, kind, full).model()


class _Halver:
    """Rewrites the nodes in order; casts where a tensor is not had in the type wanted."""

    def __init__(self, model: Any, kind: str, full: Collection[str]) -> None:
        from onnx import TensorProto

        from calibration.sensitive_layers import sensitive_layers_of

        self._model, self._kind = model, kind
        self._full = TensorProto.FLOAT
        self._half = TensorProto.FLOAT16 if kind == FP16 else TensorProto.BFLOAT16
        self._types = _types(model)
        self._ends = set(sensitive_layers_of(model).ends)
        self._too_large = frozenset(full)
        self._constants = {t.name: t for t in model.graph.initializer}
        self._integer = _made_by_int8(model.graph.node, set(self._constants))
        self._had: dict[tuple[str, int], str] = {}  # float tensor, type -> its name
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}

    def model(self) -> Any:
        """The model, rewritten in place."""
        graph = self._model.graph
        self._had.update({(v.name, self._full): v.name for v in graph.input})
        for node in graph.node:
            if any(a.HasField("g") or a.graphs for a in node.attribute):
                raise UnsupportedError(
                    f"{self._kind}: {node.op_type} {node.name!r} holds a graph of its own",
                    hint="export the model without branches and loops, or build it in fp32",
                )
            self._rewrite(node)
        for value in graph.output:
            if self._is_float(value.name):
                self._as(value.name, self._full)
        for field, new in (
            (graph.node, self._nodes),
            (graph.initializer, self._initializers.values()),
            (graph.value_info, ()),
        ):
            kept = list(new)
            del field[:]
            field.extend(kept)
        return self._model

    def _rewrite(self, node: Any) -> None:
        schema = self._schema(node)
        halved = self._computes_half(node, schema)
        for i, name in enumerate(node.input):
            if self._is_float(name):
                half = halved and self._allows(schema.inputs, i)
                node.input[i] = self._as(name, self._half if half else self._full)
            elif name in self._constants:
                self._initializers.setdefault(name, self._constants[name])
        made = self._half if halved else self._full
        for i, name in enumerate(node.output):
            if self._is_float(name):
                node.output[i] = self._had[name, made] = self._name_as(name, made)
        if halved:
            self._retype(node)
        self._nodes.append(node)

    def _schema(self, node: Any) -> Any:
        from onnx import defs

        try:
            return defs.get_schema(node.op_type, opset_of(self._model, node.domain), node.domain)
        except defs.SchemaError as error:
            raise UnsupportedError(
                f"{self._kind}: {node.name!r} is a {node.domain}.{node.op_type}, not of ONNX",
                hint="export the model with ONNX's own operators, or build it in fp32",
            ) from error

    def _computes_half(self, node: Any, schema: Any) -> bool:
        if node.name in self._ends or self._integer.intersection(node.output):
            return False
        if self._too_large & {*node.input, *node.output}:
            return False
        floats = [i for i, name in enumerate(node.output) if self._is_float(name)]
        if not floats:  # shapes, comparisons, 8-bit values: read what is there
            return any((name, self._half) in self._had for name in node.input)
        return all(self._allows(schema.outputs, i) for i in floats)

    def _allows(self, formals: Any, index: int) -> bool:
        """Whether the operator's definition lets a parameter be of the 16-bit type."""
        name = "tensor(float16)" if self._kind == FP16 else "tensor(bfloat16)"
        return name in formals[min(index, len(formals) - 1)].types

    def _is_float(self, name: str) -> bool:
        return bool(self._types.get(name) == self._full)

    def _name_as(self, name: str, kind: int) -> str:
        return name if kind == self._full else f"{name}_{self._kind}"

    def _as(self, name: str, wanted: int) -> str:
        """The name under which a float tensor is had in the type `wanted`."""
        from onnx import helper, numpy_helper

        if (name, wanted) in self._had:
            return self._had[name, wanted]
        shown = self._had[name, wanted] = self._name_as(name, wanted)
        if name in self._constants:
            tensor = self._constants[name]
            if wanted == self._half:
                tensor = self._narrow(numpy_helper.to_array(tensor), shown)
            self._initializers[shown] = tensor
        else:
            held = self._had[name, self._half if wanted == self._full else self._full]
            self._nodes.append(helper.make_node("Cast", [held], [shown], f"to_{shown}", to=wanted))
        return shown

    def _narrow(self, value: npt.NDArray[Any], name: str) -> Any:
        from ml_dtypes import bfloat16
        from onnx import numpy_helper

        if self._kind == BF16:
            return numpy_helper.from_array(value.astype(bfloat16), name)
        most = float(np.finfo(np.float16).max)
        finite = np.where(np.isfinite(value), np.clip(value, -most, most), value)
        return numpy_helper.from_array(finite.astype(np.float16), name)

    def _retype(self, node: Any) -> None:
        """The types and constants that a node states in its attributes."""
        from onnx import helper, numpy_helper

        for attribute in list(node.attribute):
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == self._full:
                attribute.i = self._half
            if node.op_type not in ("Constant", "ConstantOfShape"):
                continue
            if attribute.name == "value" and attribute.t.data_type == self._full:
                attribute.t.CopyFrom(self._narrow(numpy_helper.to_array(attribute.t), ""))
            elif attribute.name in ("value_float", "value_floats"):
                value = np.array(helper.get_attribute_value(attribute), np.float32)
                node.attribute.remove(attribute)
                node.attribute.append(helper.make_attribute("value", self._narrow(value, "")))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            zero = self._narrow(np.zeros(1, np.float32), "")
            node.attribute.append(helper.make_attribute("value", zero))


def _made_by_int8(nodes: Iterable[Any], constants: set[str]) -> set[str]:
    """Tensors that quantizers make, and those between them: an INT8 kernel computes what reads
    dequantized values, and what reads nothing else but that, up to the next product."""
    made, dequantized, between = set[str](), set[str](), set[str]()
    for node in nodes:
        read = set(node.input) - constants - {""}
        if node.op_type == "DequantizeLinear":
            dequantized.update(node.output)
        elif read & dequantized or (
            node.op_type not in _PRODUCTS and read and read <= between | dequantized
        ):
            between.update(node.output)
        elif node.op_type == "QuantizeLinear":
            made.update(node.output)
    return made | dequantized | between


def _types(model: Any) -> dict[str, int]:
    """Element type of every tensor."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    return types | {t.name: t.data_type for t in graph.initializer}


def opset_of(model: Any, domain: str = "") -> int:
    """Version of an operator set that a model uses; ONNX's own by default."""
    return int(
        next(o.version for o in model.opset_import if o.domain in (domain, domain or "ai.onnx"))
    )
