"""Candidates of a search on LiteRT: ranges are measured once, and each is written in memory."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from calibration.search import Operation, estimate_work
from calibration.sensitive_layers import refuse_nothing_quantized, sensitive_layers_in_file
from targets._litert.flatbuffer import unpack, write
from targets._litert.from_onnx import convert
from targets._litert.passes import split_slopes
from targets._litert.quantize import PRODUCTS, Int8
from targets._litert.ranges import RANGE_ESTIMATORS, measure_ranges
from targets._litert.session import LiteRtSession, at_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mipkd.core.records import QuantScheme
    from targets._litert.net import Net, Op
    from targets.base import BuildRequest

LEARNED = "learned"
_SIDE = 64  # LR pixels at which their work is counted
_KINDS = {  # as ONNX calls them
    "ADD": "Add",
    "CONV_2D": "Conv",
    "DEPTHWISE_CONV_2D": "Conv",
    "MUL": "Mul",
    "SUB": "Sub",
    "TRANSPOSE_CONV": "ConvTranspose",
}


class LiteRtTuner:
    """Quantised models of one graph; its ranges are kept in the request's folder."""

    other_precisions: tuple[str, ...] = ("fp32",)

    def __init__(self, request: BuildRequest) -> None:
        assert request.patches is not None, "a search has them"
        self.range_estimators: tuple[str, ...] = (LEARNED,) if request.scheme else RANGE_ESTIMATORS
        self._request, self._patches = request, request.patches
        self._net = convert(request.graph.file, request.graph.multiple)
        split_slopes(self._net)
        self._quantized: dict[str, Int8] = {}
        request.out.mkdir(parents=True, exist_ok=True)

    def operations(self) -> tuple[Operation, ...]:
        """Convolutions, sums and products of feature maps, in the graph's order.

        Raises:
            UnsupportedError: there is no convolution.
        """
        parts = sensitive_layers_in_file(self._request.graph.file).parts
        found = self.int8(self.range_estimators[0]).operations()
        refuse_nothing_quantized(_KINDS[op.code] for op in found)
        works = _works(self._net, self._request.graph.multiple)
        return tuple(
            Operation(op.name, _KINDS[op.code], works[op.outputs[0]], parts.get(op.name, ""))
            for op in found
            if op.name not in self._trained_as_float
        )

    def session(self, estimator: str, floats: Sequence[str], other: str) -> LiteRtSession:
        """A candidate, opened."""
        return LiteRtSession(write(self.quantized(estimator, floats)), {})

    def quant_scheme(self, floats: Sequence[str]) -> QuantScheme:
        """All that INT8 rounds, with the usual ranges, when `floats` stay float."""
        every = [*self._trained_as_float, *floats]
        return self.int8(self.range_estimators[0]).scheme(every)

    def quantized(self, estimator: str, floats: Sequence[str]) -> Net:
        """The graph in INT8 when the operations called `floats` stay float."""
        every = {*self._trained_as_float, *floats}
        return self.int8(estimator).quantized(every)

    @property
    def _trained_as_float(self) -> tuple[str, ...]:
        return self._request.scheme.floats if self._request.scheme else ()

    def int8(self, estimator: str) -> Int8:
        """The graph and its ranges, measured the first time that they are asked for."""
        if estimator not in self._quantized:
            file = self._request.out / f"{estimator}.ranges.json"
            ranges = _read(file) or measure_ranges(self._net, self._patches, estimator)
            _write(file, ranges)
            self._quantized[estimator] = Int8.of(self._net, ranges, self._request.scheme)
        return self._quantized[estimator]


def _read(file: Path) -> dict[str, tuple[float, float]]:
    if not file.is_file():
        return {}
    return {name: (low, high) for name, (low, high) in json.loads(file.read_text()).items()}


def _write(file: Path, ranges: dict[str, tuple[float, float]]) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(ranges))
    partial.replace(file)


def _works(net: Net, multiple: int) -> dict[str, float]:
    """How much longer each operator takes as a float, by what it makes."""
    side = -(-_SIDE // multiple) * multiple
    tensors = unpack(at_size(write(net), (1, side, side, 3))).subgraphs[0].tensors
    values = {one.name.decode(): math.prod(map(int, one.shape)) for one in tensors}
    return {op.outputs[0]: _work(net, op, values) for op in net.ops}


def _work(net: Net, op: Op, values: dict[str, int]) -> float:
    read = sum(values[name] for name in op.inputs if name not in net.constants)
    made = values[op.outputs[0]]
    if op.code not in PRODUCTS:
        return estimate_work(macs=0, values=made + read)
    kernel = net.constants[op.inputs[1]].shape
    each = math.prod(kernel[1:3] if op.code == "DEPTHWISE_CONV_2D" else kernel[1:])
    macs = read * math.prod(kernel[:3]) if op.code == "TRANSPOSE_CONV" else made * each
    return estimate_work(macs=macs, values=made + read)
