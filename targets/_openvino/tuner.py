"""Candidates of a search on OpenVINO: quantised once for each estimator, then edited in memory."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from calibration.search import Operation, estimate_work
from calibration.sensitive_layers import refuse_nothing_quantized
from mipkd.core.quiet import quiet
from mipkd.core.records import QuantScheme
from targets._openvino import devices
from targets._openvino.fake_quantize import (
    CONVOLUTIONS,
    factors,
    name_of,
    operations,
    read_grids,
    restore_floats,
    weights,
)
from targets._openvino.joins import readers_of_scaled
from targets._openvino.last_bias import last_bias_in_fp32
from targets._openvino.quantize import LEARNED, RANGE_ESTIMATORS, NncfInt8, sensitive_layers_of
from targets._openvino.session import LatencySession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

_SIDE = 64  # LR pixels at which their work is counted
_TRANSPOSED = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")


class OvTuner:
    """Quantised models of one graph, kept in `out` so that an interrupted search goes on.

    `options` are those of a session, by the precision that floats are computed in.
    """

    def __init__(
        self, settings: NncfInt8, out: Path, options: Mapping[str, dict[str, str]]
    ) -> None:
        self.range_estimators: tuple[str, ...] = (LEARNED,) if settings.scheme else RANGE_ESTIMATORS
        self.other_precisions = tuple(options)
        self._settings, self._out, self._options = settings, out, options
        self._quantized: dict[str, Any] = {}
        self._original = self._keep("float", settings.convert)

    def operations(self) -> tuple[Operation, ...]:
        """What NNCF puts into INT8, in the graph's order.

        Raises:
            UnsupportedError: no convolution nor other product.
        """
        parts = sensitive_layers_of(self._original).parts
        sized = _with_fixed_size(self._load(self.range_estimators[0]))
        found = operations(sized)
        refuse_nothing_quantized(op.get_type_name() for op in found)
        return tuple(
            Operation(
                name_of(op),
                op.get_type_name(),
                _work(op),
                parts.get(op.get_friendly_name(), ""),
            )
            for op in found
        )

    def session(self, estimator: str, floats: Iterable[str], other: str) -> LatencySession:
        """A candidate, compiled as `open` compiles."""
        edited = restore_floats(self._load(estimator), self._original, floats)
        if other != "fp32":
            edited = last_bias_in_fp32(edited)
        return LatencySession(edited, self._settings.device, self._options[other])

    def quant_scheme(self, floats: Sequence[str]) -> QuantScheme:
        """All that INT8 rounds, with the usual ranges, when `floats` stay float.

        So do convolutions whose weights were scaled for what they read: a training rounds others.
        """
        scaled = map(name_of, readers_of_scaled(self._original))
        floats = tuple(dict.fromkeys((*floats, *scaled)))
        edited = restore_floats(self._load(self.range_estimators[0]), self._original, floats)
        found = read_grids(edited, factors(self._original, self._settings.file))
        return QuantScheme(found, weights(edited, self._original), floats)

    def _load(self, estimator: str) -> Any:
        """The graph in INT8, quantised the first time that it is asked for."""
        if estimator not in self._quantized:
            quantize = partial(self._settings.quantize_all, self._original, estimator)
            self._quantized[estimator] = self._keep(estimator, quantize)
        return self._quantized[estimator]

    def _keep(self, name: str, make: Callable[[], Any]) -> Any:
        """A graph that an earlier search has kept in the folder, else a new one."""
        file, whole = self._out / f"{name}.xml", self._out / f"{name}.whole"
        if not whole.is_file():
            self._out.mkdir(parents=True, exist_ok=True)
            with quiet():
                devices.package().save_model(make(), str(file), compress_to_fp16=False)
            whole.touch()
        return devices.core().read_model(str(file))


def _with_fixed_size(model: Any) -> Any:
    """A copy with static shapes where the graph allows it."""
    copy = model.clone()
    try:
        copy.reshape([1, 3, _SIDE, _SIDE])
    except RuntimeError:  # sizes fixed inside the graph
        return model
    return copy


def _work(op: Any) -> float:
    """How much longer an operation takes as a float, from its shapes."""
    sizes = [_size(op.input_value(i)) for i in range(op.get_input_size())]
    made, kind, macs = _size(op.output(0)), op.get_type_name(), 0
    if op.get_input_size() > 1:
        weights = [
            side.get_length() for side in op.input_value(1).get_partial_shape() if side.is_static
        ]
        if kind in CONVOLUTIONS:  # (groups,) out, in, kernel
            macs = made * math.prod(weights[-3:])
        elif kind in _TRANSPOSED:  # (groups,) in, out, kernel
            macs = sizes[0] * math.prod(weights[-3:])
        elif kind == "MatMul" and weights:
            turned = op.get_attributes().get("transpose_b", False)
            macs = made * (weights[-1] if turned else weights[-2]) if len(weights) > 1 else made
    return estimate_work(macs=macs, values=made + (sizes[0] if macs else sum(sizes)))


def _size(output: Any) -> int:
    """How many values a tensor has; 0 where its shape is not known."""
    shape = output.get_partial_shape()
    return math.prod(shape.to_shape()) if shape.is_static else 0
