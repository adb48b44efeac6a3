"""Candidates of a search on ONNX Runtime: quantised once, then edited in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calibration.search import Operation
from calibration.sensitive_layers import model_scopes
from mipkd.core.records import Rounding
from targets._onnx import unquantize
from targets._onnxruntime.quantize import LEARNED, RANGES, everything, prepared, weights_most

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mipkd.core.records import Graph, PatchSet
    from targets.cpu import OrtSession


class OrtTuner:
    """Quantised models of one graph, kept in `out` so that an interrupted search goes on."""

    rests = ("fp32",)

    def __init__(
        self,
        graph: Graph,
        patches: PatchSet,
        out: Path,
        *,
        saturates: bool,
        options: dict[str, str],
        rounding: Rounding | None = None,
    ) -> None:
        self.ranges = (LEARNED,) if rounding else RANGES
        self._rounding = rounding
        self._patches, self._out = patches, out
        self._saturates, self._options = saturates, options
        self._original = prepared(graph, out)
        self._made: dict[str, Any] = {}

    def operations(self) -> tuple[Operation, ...]:
        """Convolutions and products with weights, in the graph's order."""
        parts = model_scopes(self._original).sensitive
        nodes = unquantize.operations(self._quantized(self.ranges[0]))
        alike = _alike(self._original)
        return tuple(
            Operation(n.name, n.op_type, alike[n.name], parts.get(n.name, "")) for n in nodes
        )

    def session(self, ranges: str, floats: Sequence[str], rest: str) -> OrtSession:
        """A candidate, opened."""
        from targets.cpu import OrtSession

        edited = unquantize.with_floats(self._quantized(ranges), self._original, floats)
        return OrtSession(edited.SerializeToString(), self._options)

    def rounding(self, floats: Sequence[str]) -> Rounding:
        """What INT8 rounds beside `floats`, with the usual ranges."""
        made = unquantize.with_floats(self._quantized(self.ranges[0]), self._original, floats)
        most = weights_most(saturates=self._saturates)
        weights = [(n.name, most) for n in unquantize.operations(made) if n.op_type != "Add"]
        return Rounding(unquantize.grids(made), tuple(weights), tuple(floats))

    def _quantized(self, ranges: str) -> Any:
        if ranges not in self._made:
            import onnx

            file = self._out / f"{ranges}.onnx"
            if not file.is_file():
                partial = self._out / f"{ranges}.partial"
                made = everything(
                    self._original,
                    self._patches,
                    partial,
                    saturates=self._saturates,
                    rounding=self._rounding,
                )
                onnx.save(made, partial)
                partial.replace(file)
            self._made[ranges] = onnx.load(file)
        return self._made[ranges]


def _alike(model: Any) -> dict[str, str]:
    """Kind, shapes of weights and size of the output, by name of the node."""
    from onnx import shape_inference

    fixed = shape_inference.infer_shapes(_sized(model)).graph
    shapes = {t.name: str(tuple(t.dims)) for t in fixed.initializer}
    for value in (*fixed.value_info, *fixed.output):
        dims = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        shapes[value.name] = str(dims)
    return {
        n.name: " ".join([n.op_type, *(shapes.get(t, "") for t in (*n.input[1:2], *n.output))])
        for n in fixed.node
    }


def _sized(model: Any) -> Any:
    """A copy whose input has 64 x 64 pixels."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for dim in copy.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 64
    del copy.graph.value_info[:]
    return copy
