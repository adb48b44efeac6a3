"""The types that a graph is written in for TensorRT, which computes in those that it states."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import UnsupportedError

if TYPE_CHECKING:
    from targets._onnx.onnx_float16 import Peaks
    from targets.base import BuildRequest

_PATCHES = 8  # of the calibration's that probe FP16's range, beside the extreme images
_PROBED = 48  # LR pixels a side of these extreme images
# The highest ONNX opset that a release's parser reads, by its own list of operators. The lists of
# 10.0 and 10.7 say 20, that of 10.15 says 24; those in between were not looked at.
_OPSETS = (((10, 15), 24), ((0, 0), 20))


@dataclass(frozen=True)
class Parser:
    """What will read the graph."""

    name: str
    opset: int  # the highest that it reads

    @classmethod
    def of(cls, version: str) -> Parser:
        """That of a TensorRT; of one that is not known the least is taken for granted."""
        found = re.match(r"(\d+)\.(\d+)", version)
        release = (int(found[1]), int(found[2])) if found else (0, 0)
        opset = next(opset for since, opset in _OPSETS if release >= since)
        return cls(f"TensorRT {version}" if found else "a TensorRT that is not known", opset)


RTX = Parser("TensorRT-RTX", 24)


def type_graph(request: BuildRequest, parser: Parser) -> tuple[Any, str, tuple[str, ...]]:
    """The model in the types that it is computed in, their precision, and notes.

    Raises:
        UnsupportedError: the parser does not read it, or nothing of it is left in 16 bits.
    """
    import onnx

    from targets._onnx.onnx_float16 import convert_to_16_bits, opset_of
    from targets._tensorrt.symmetric_qdq import quantize_symmetric

    model, precision = onnx.load(request.graph.file), request.precision
    if (opset := opset_of(model)) > parser.opset:
        raise UnsupportedError(
            f"the graph is of opset {opset}; {parser.name} reads up to {parser.opset}",
            hint=f"export it with opset {parser.opset}, or take a newer JetPack (7.2 reads 24)",
        )
    if precision == "fp32":
        return model, precision, ()
    kind, full, notes = _choose_16_bits(request, parser)
    if precision != "int8":
        halved = convert_to_16_bits(model, kind, full)
        _refuse_nothing_halved(halved, kind, parser, full)
        return halved, kind, notes
    assert request.patches is not None, "accepted with them"
    quantized, kept = quantize_symmetric(model, request.patches, request.scheme)
    notes = (*kept, f"what is float is {kind.upper()}, scales and their ends FP32", *notes)
    return convert_to_16_bits(quantized, kind, full), precision, notes


def fp16_or_bf16(request: BuildRequest) -> tuple[str, tuple[str, ...]]:
    """FP16, or BF16 with a note where values of the graph would overflow FP16."""
    over = _probe(request).too_large
    if not over:
        return "fp16", ()
    tensor, value = next(iter(over.items()))
    return "bf16", (f"BF16, not FP16: {tensor} reaches {value:.3g}",)


def _choose_16_bits(
    request: BuildRequest, parser: Parser
) -> tuple[str, dict[str, float], tuple[str, ...]]:
    """FP16 or BF16, which tensors stay FP32 with what reads and makes them, and notes."""
    from targets._onnx.onnx_float16 import BF16, BF16_OPSET, FP16

    if request.precision == BF16:
        if parser.opset < BF16_OPSET:
            raise UnsupportedError(
                f"bf16 needs ONNX opset {BF16_OPSET}; {parser.name} reads up to {parser.opset}",
                hint="fp16 keeps in FP32 what would overflow: --precision fp16",
            )
        return BF16, {}, ()
    over = _probe(request).too_large
    if not over:
        return FP16, {}, ()
    tensor, value = next(iter(over.items()))
    peak = f"{tensor} reaches {value:.3g}"
    if parser.opset >= BF16_OPSET:
        return BF16, {}, (f"BF16, not FP16: {peak}",)
    why = f"{peak}, and {parser.name} may read no BF16"
    return FP16, over, (f"FP32 where {len(over)} tensors would overflow FP16: {why}",)


def _probe(request: BuildRequest) -> Peaks:
    from calibration.patches import as_batches
    from targets._onnx.onnx_float16 import extreme_images, find_peaks

    multiple = request.graph.multiple
    patches = as_batches(request.patches) if request.patches else []
    probes = patches[:: -(-len(patches) // _PATCHES) or 1]
    images = [*extreme_images(-(-_PROBED // multiple) * multiple), *probes]
    return find_peaks(request.graph.file, images)


def _refuse_nothing_halved(model: Any, kind: str, parser: Parser, full: dict[str, float]) -> None:
    """Refuse what would be called 16 bits while its weights are all FP32."""
    from onnx import TensorProto

    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if full and not any(t.data_type in half and len(t.dims) > 1 for t in model.graph.initializer):
        tensor, value = next(iter(full.items()))
        raise UnsupportedError(
            f"{kind}: all layers would overflow it ({tensor} reaches {value:.3g}), and "
            f"{parser.name} may read no BF16",
            hint="build it in fp32: --precision fp32,int8",
        )
