"""Candidates of a search on OpenVINO: quantised once a recipe, then edited in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calibration.search import Operation
from mipkd.core.quiet import quiet
from mipkd.core.records import Rounding
from targets._openvino import devices
from targets._openvino.fake_quantize import (
    factors,
    grids,
    name_as_in,
    name_of,
    operations,
    weights,
    with_floats,
)
from targets._openvino.last_bias import last_bias_in_fp32
from targets._openvino.quantize import LEARNED, RANGES, everything, scopes_of
from targets._openvino.session import LatencySession

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from mipkd.core.records import Graph, PatchSet

_SIDE = 64  # LR pixels at which operations are told apart by their shapes


class OvTuner:
    """Quantised models of one graph, kept in `out` so that an interrupted search goes on."""

    def __init__(
        self,
        graph: Graph,
        patches: PatchSet,
        out: Path,
        *,
        device: str,
        options: dict[str, dict[str, str]],  # of each precision that floats can be computed in
        saturates: bool,
        rounding: Rounding | None = None,
    ) -> None:
        self.ranges = (LEARNED,) if rounding else RANGES
        self._rounding, self._saturates = rounding, saturates
        self.rests = tuple(options)
        self._patches, self._out = patches, out
        self._device, self._options = device, options
        self._made: dict[str, Any] = {}
        with quiet():
            self._file = graph.file
            self._original = devices.package().convert_model(str(graph.file))
            name_as_in(self._original, graph.file)

    def operations(self) -> tuple[Operation, ...]:
        """What NNCF puts into INT8, in the graph's order."""
        parts = scopes_of(self._original).sensitive
        sized = _sized(self._quantized(self.ranges[0]))
        return tuple(
            Operation(
                name_of(op),
                op.get_type_name(),
                _alike(op),
                parts.get(op.get_friendly_name(), ""),
            )
            for op in operations(sized)
        )

    def session(self, ranges: str, floats: Iterable[str], rest: str) -> LatencySession:
        """A candidate, compiled as `open` compiles."""
        edited = with_floats(self._quantized(ranges), self._original, floats)
        if rest != "fp32":
            edited = last_bias_in_fp32(edited)
        return LatencySession(edited, self._device, self._options[rest])

    def rounding(self, floats: Sequence[str]) -> Rounding:
        """What INT8 rounds beside `floats`, with the usual ranges."""
        made = with_floats(self._quantized(self.ranges[0]), self._original, floats)
        found = grids(made, factors(self._original, self._file))
        return Rounding(found, weights(made, self._original), tuple(floats))

    def _quantized(self, ranges: str) -> Any:
        if ranges not in self._made:
            file, whole = self._out / f"{ranges}.xml", self._out / f"{ranges}.whole"
            if not whole.is_file():
                with quiet():
                    made = everything(
                        self._original,
                        self._patches,
                        device=self._device,
                        ranges=ranges,
                        file=self._file,
                        saturates=self._saturates,
                        rounding=self._rounding,
                    )
                    devices.package().save_model(made, str(file), compress_to_fp16=False)
                whole.touch()
            self._made[ranges] = devices.core().read_model(str(file))
        return self._made[ranges]


def _sized(model: Any) -> Any:
    """A copy with static shapes where the graph allows it."""
    copy = model.clone()
    try:
        copy.reshape([1, 3, _SIDE, _SIDE])
    except RuntimeError:  # sizes fixed inside the graph
        return model
    return copy


def _alike(op: Any) -> str:
    """Kind and shapes: those of one such word take the same time."""
    shapes = [str(op.input(i).get_partial_shape()) for i in range(op.get_input_size())]
    return " ".join([op.get_type_name(), *shapes, str(op.get_output_partial_shape(0))])
