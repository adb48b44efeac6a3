"""INT8 as explicit Q/DQ, signed and symmetric, which is what TensorRT's parser takes."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.patches import as_batches
from calibration.sensitive_layers import (
    ATTENTION_FLOAT,
    refuse_nothing_quantized,
    sensitive_layers_of,
)
from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.quiet import quiet
from mipkd.core.records import QuantScheme
from targets._onnx.unquantize import operations, read_grids, set_scales

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mipkd.core.records import PatchSet

_CLIPPED = 1e-4  # share of values that a range leaves out
_WIDTH = 32  # channels, by NVIDIA's advice
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_MOST = 127  # the integer that a channel's largest weight becomes
_MIDDLE = 128  # of a grid's 0 to 255: a signed 0

Maker = Callable[..., Any]  # takes a model, patches and what stays float; gives the model with Q/DQ


def quantize_symmetric(
    model: Any, patches: PatchSet, learned: QuantScheme | None = None
) -> tuple[Any, tuple[str, ...]]:
    """A copy of an ONNX model with symmetric Q/DQ, and notes of what stays float.

    The first and the last convolution, skip additions and attention stay float. NNCF loses least
    (docs/decisions/0003-int8-recipes.md); ModelOpt is asked where it is there and NNCF is not.
    Activations are on the grids of `learned` where the model's weights were learned with them.

    Raises:
        MissingError: neither is installed.
    """
    maker = find_maker()
    if maker is None:
        raise MissingError("int8 needs nncf, which is not installed", hint="pip install nncf")
    found = sensitive_layers_of(model)
    floats, kinds = tuple(found.parts), ("MatMul",) * found.attention
    with quiet():
        quantized = maker(model, patches, floats, kinds, learned=learned is not None)
    refuse_nothing_quantized(node.op_type for node in operations(quantized))
    if learned:
        set_scales(quantized, learned.grids)
    notes = [found.note_on_floats("float"), *_note_on_channels(model, floats)]
    return quantized, (*notes, ATTENTION_FLOAT) if found.attention else tuple(notes)


def find_maker() -> Maker | None:
    """What quantises here, the better first; None where neither is installed."""
    return next((made_by for name, made_by in _MAKERS.items() if find_spec(name)), None)


def read_rounding(model: Any, patches: PatchSet) -> QuantScheme:
    """All that `quantize_symmetric` rounds of a model."""
    quantized, _ = quantize_symmetric(model, patches)
    weights = tuple((node.name, _MOST) for node in operations(quantized))
    grids = tuple(replace(grid, zero_point=_MIDDLE) for grid in read_grids(quantized))
    return QuantScheme(grids, weights)


def refuse_unreadable(model: Any) -> None:
    """Refuse the Q/DQ that TensorRT rejects or misreads.

    Raises:
        UnsupportedError: names the first node whose values are an INT32 bias, UINT8, or not
            centred on zero.
    """
    from onnx import TensorProto, numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    nodes = [node for node in model.graph.node if node.op_type in _QUANTIZERS]
    stored = {n.name: constants.get(n.input[0]) for n in nodes}
    zeros = {n.name: constants.get(n.input[2]) for n in nodes if len(n.input) > 2}
    for node in nodes:
        if (values := stored[node.name]) is not None and values.data_type == TensorProto.INT32:
            raise UnsupportedError(
                f"tensorrt: {_name_of(node)} reads the INT32 bias {node.input[0]!r}; "
                "biases have to stay float",
                hint="quantise without biases; with ONNX Runtime: extra option QuantizeBias=False",
            )
    for node in nodes:
        if _is_unsigned(node, stored[node.name], zeros.get(node.name)):
            raise UnsupportedError(
                f"tensorrt: {_name_of(node)} has a UINT8 zero point; TensorRT would read it as "
                "INT8 and clip the upper half of the values",
                hint="quantise activations to signed, symmetric INT8",
            )
    for node in nodes:
        zero = zeros.get(node.name)
        if (zero is None and len(node.input) > 2 and node.input[2]) or (
            zero is not None and np.any(numpy_helper.to_array(zero))
        ):
            raise UnsupportedError(
                f"tensorrt: {_name_of(node)} has a zero point other than 0",
                hint="quantise weights and activations symmetrically",
            )


def _note_on_channels(model: Any, floats: Collection[str]) -> list[str]:
    """A note where INT8 convolutions give other numbers of channels than NVIDIA advises."""
    weights = {t.name: t for t in model.graph.initializer}
    counts = [
        weights[node.input[1]].dims[0]
        for node in model.graph.node
        if node.op_type == "Conv" and node.name not in floats and node.input[1] in weights
    ]
    if not (odd := sorted({count for count in counts if count % _WIDTH})):
        return []
    return [
        f"{sum(count in odd for count in counts)} of {len(counts)} INT8 convolutions have "
        f"{', '.join(map(str, odd))} channels: TensorRT's INT8 is fastest in multiples of {_WIDTH}"
    ]


def _by_nncf(
    model: Any, patches: PatchSet, floats: Sequence[str], kinds: Sequence[str], *, learned: bool
) -> Any:
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own call alters shared handlers
    image = model.graph.input[0].name
    made = nncf.quantize(
        model,
        nncf.Dataset([{image: batch} for batch in as_batches(patches)]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=patches.count,
        advanced_parameters=_advanced_parameters(correct_biases=not learned),
        ignored_scope=nncf.IgnoredScope(names=[*floats], types=[*kinds]),
    )
    _sign(made)
    return made


def _by_modelopt(
    model: Any, patches: PatchSet, floats: Sequence[str], kinds: Sequence[str], *, learned: bool
) -> Any:
    import onnx
    from modelopt.onnx.quantization import quantize

    with tempfile.TemporaryDirectory() as folder:
        source, made = (str(Path(folder, name)) for name in ("float.onnx", "int8.onnx"))
        onnx.save(model, source)
        quantize(
            source,
            calibration_data={model.graph.input[0].name: np.concatenate(as_batches(patches))},
            calibration_method="max",  # entropy lost 0.24 dB and more of EDSR-baseline
            calibration_eps=["cpu"],
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in floats],
            op_types_to_exclude=[*kinds],
            high_precision_dtype="fp32",
            output_path=made,
            log_level="ERROR",
        )
        rounded = onnx.load(made)
    _read_before_rounding(rounded, floats)
    return rounded


def _read_before_rounding(model: Any, names: Sequence[str]) -> None:
    """Let nodes bypass the Q/DQ that ModelOpt shares among all readers of a tensor."""
    by = {node.output[0]: node for node in model.graph.node if node.op_type in _QUANTIZERS}
    for node in model.graph.node:
        for index, tensor in enumerate(node.input):
            if node.name in names and tensor in by and by[tensor].input[0] in by:
                node.input[index] = by[by[tensor].input[0]].input[0]


_MAKERS = {"nncf": _by_nncf, "modelopt": _by_modelopt}


def _name_of(node: Any) -> str:
    return f"{node.op_type} {node.name or node.output[0]!r}"


def _is_unsigned(node: Any, stored: Any, zero: Any) -> bool:
    from onnx import TensorProto

    if zero is not None:
        return bool(zero.data_type == TensorProto.UINT8)
    if node.op_type == "DequantizeLinear":
        return stored is not None and bool(stored.data_type == TensorProto.UINT8)
    stated = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    return len(node.input) < 3 and stated in (TensorProto.UNDEFINED, TensorProto.UINT8)


def _sign(model: Any) -> None:
    """Turn the UINT8 codes that NNCF gives to values of one sign into INT8, in place.

    Codes 0..255 become 0..127 of the same range, so one of the 8 bits is lost there: the price
    of a zero point of 0 in a signed type, which is all that TensorRT computes with.
    """
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    users = [n for n in model.graph.node if n.op_type in _QUANTIZERS]
    unsigned = {
        (n.input[1], n.input[2])
        for n in users
        if numpy_helper.to_array(constants[n.input[2]]).dtype == np.uint8
    }
    for scale, zero in unsigned:
        step = numpy_helper.to_array(constants[scale]) * np.float32(255 / 127)
        codes = numpy_helper.to_array(constants[zero]).astype(np.int8)
        constants[scale].CopyFrom(numpy_helper.from_array(step, scale))
        constants[zero].CopyFrom(numpy_helper.from_array(codes, zero))
    del model.graph.value_info[:]  # they state the old types


def _advanced_parameters(*, correct_biases: bool) -> Any:
    """Ranges of activations: of each patch all but 1 value in 10,000, over all the widest."""
    from nncf import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    low, high = (
        StatisticsCollectorParameters(kind, aggregator, quantile_outlier_prob=_CLIPPED)
        for kind, aggregator in (
            (StatisticsType.QUANTILE, AggregatorType.MIN),
            (StatisticsType.ABS_QUANTILE, AggregatorType.MAX),
        )
    )
    return AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParameters(low, high),
        disable_bias_correction=not correct_biases,
    )
