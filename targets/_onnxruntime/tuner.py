"""Candidates of a search on ONNX Runtime: quantised once, then edited in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from calibration.search import Operation, estimate_work
from calibration.sensitive_layers import refuse_nothing_quantized, sensitive_layers_of
from mipkd.core.records import QuantScheme
from targets._onnx import unquantize
from targets._onnxruntime.quantize import LEARNED, RANGE_ESTIMATORS, OrtInt8, prepare_graph
from targets._onnxruntime.session import OrtSession

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from targets.base import BuildRequest


class OrtTuner:
    """Quantised models of one graph, kept in the request's folder: an interrupted search goes on.

    `options` are those of a session.
    """

    other_precisions: tuple[str, ...] = ("fp32",)

    def __init__(
        self, request: BuildRequest, *, saturates: bool, options: Mapping[str, str]
    ) -> None:
        assert request.patches is not None, "a search has them"
        self.range_estimators: tuple[str, ...] = (LEARNED,) if request.scheme else RANGE_ESTIMATORS
        self._out, self._options = request.out, options
        self._settings = OrtInt8(request.patches, saturates, request.scheme)
        self._original = prepare_graph(request.graph, request.out)
        self._quantized: dict[str, Any] = {}

    def operations(self) -> tuple[Operation, ...]:
        """Convolutions and products with weights, in the graph's order.

        Raises:
            UnsupportedError: there is none.
        """
        parts = sensitive_layers_of(self._original).parts
        nodes = unquantize.operations(self._load(self.range_estimators[0]))
        refuse_nothing_quantized(node.op_type for node in nodes)
        works = _works(self._original)
        return tuple(
            Operation(n.name, n.op_type, works[n.name], parts.get(n.name, "")) for n in nodes
        )

    def session(self, estimator: str, floats: Sequence[str], other: str) -> OrtSession:
        """A candidate, opened."""
        edited = unquantize.restore_floats(self._load(estimator), self._original, floats)
        return OrtSession(edited.SerializeToString(), self._options)

    def quant_scheme(self, floats: Sequence[str]) -> QuantScheme:
        """All that INT8 rounds, with the usual ranges, when `floats` stay float."""
        edited = unquantize.restore_floats(
            self._load(self.range_estimators[0]), self._original, floats
        )
        most = self._settings.weights_most
        weights = [(n.name, most) for n in unquantize.operations(edited) if n.op_type != "Add"]
        return QuantScheme(unquantize.read_grids(edited), tuple(weights), tuple(floats))

    def _load(self, estimator: str) -> Any:
        """The graph in INT8, quantised the first time that it is asked for."""
        import onnx

        if estimator not in self._quantized:
            file = self._out / f"{estimator}.onnx"
            if not file.is_file():
                partial = self._out / f"{estimator}.partial"
                onnx.save(self._settings.quantize_all(self._original, partial), partial)
                partial.replace(file)
            self._quantized[estimator] = onnx.load(file)
        return self._quantized[estimator]


def _works(model: Any) -> dict[str, float]:
    """How much longer each node takes as a float, from its shapes, by its name."""
    from onnx import shape_inference

    fixed = shape_inference.infer_shapes(_with_fixed_size(model)).graph
    weights = {t.name: tuple(t.dims) for t in fixed.initializer}
    sizes = {}
    for value in (*fixed.input, *fixed.value_info, *fixed.output):
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        sizes[value.name] = math.prod(dims)  # 0 where one is not known
    works = {}
    for node in fixed.node:
        made = sizes.get(node.output[0], 0)
        values = made + sum(sizes.get(name, 0) for name in node.input)
        kernel = next((weights[name] for name in node.input[1:2] if name in weights), ())
        macs = _macs(node, kernel, made, sizes.get(node.input[0], 0))
        works[node.name] = estimate_work(macs=macs, values=values)
    return works


def _macs(node: Any, weights: tuple[int, ...], made: int, read: int) -> int:
    """Multiply-adds of a node with weights, from how many values it makes and reads."""
    if not weights:
        return 0
    if node.op_type == "ConvTranspose":  # each value read goes to so many that are made
        return read * math.prod(weights[1:])
    if node.op_type == "Conv":
        return made * math.prod(weights[1:])
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    return made * (weights[-1] if turned else weights[-2] if len(weights) > 1 else weights[0])


def _with_fixed_size(model: Any) -> Any:
    """A copy whose input has 64 x 64 pixels."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for dim in copy.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 64
    del copy.graph.value_info[:]
    return copy
