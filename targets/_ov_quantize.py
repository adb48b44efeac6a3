"""INT8 for OpenVINO by NNCF: which ranges, and which layers stay float."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mipkd.core.records import PatchSet

_CLIPPED = 1e-4  # share of values that a range leaves out
_PLACED_FOR = ("GPU", "NPU")  # devices whose quantisers NNCF places otherwise than for a CPU


def quantized(
    model: Any, patches: PatchSet, *, device: str, rest: str
) -> tuple[Any, tuple[str, ...]]:
    """The model in INT8 for a device, and notes: what stays in `rest`, a float precision.

    NNCF's mixed preset; first and last convolution and the skips stay float.

    What each part of the recipe costs and saves: docs/decisions/0003-int8-recipes.md.
    """
    import nncf

    from calibration.patches import as_batches
    from calibration.scopes import ATTENTION_NOTE

    nncf.set_log_level(logging.ERROR)
    found, kind = _scopes(model), device.partition(".")[0]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(as_batches(patches)),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice[kind if kind in _PLACED_FOR else "ANY"],
        subset_size=patches.count,
        model_type=nncf.ModelType.TRANSFORMER if found.attention else None,
        advanced_parameters=_ranges(),
        ignored_scope=nncf.IgnoredScope(names=[*found.head, *found.tail, *found.adds]),
    )
    kept = f"{len(found.head) + len(found.tail)} convolutions (first, last)"
    notes = [f"{kept} and {len(found.adds)} skip additions stay {rest.upper()}"]
    return quantized, (*notes, ATTENTION_NOTE) if found.attention else tuple(notes)


def _ranges() -> Any:
    """Activation ranges: of each patch all but 1 value in 10,000, over all patches the widest.

    By default NNCF takes the mean of the patches' ranges, and clips whatever is brighter.
    """
    from nncf import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    low, high = (
        StatisticsCollectorParameters(
            StatisticsType.QUANTILE, aggregator, quantile_outlier_prob=_CLIPPED
        )
        for aggregator in (AggregatorType.MIN, AggregatorType.MAX)
    )
    return AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParameters(low, high)
    )


def _scopes(model: Any) -> Any:
    """Found on the converted graph: conversion fuses and renames operations."""
    from calibration.scopes import Node, scopes

    def tensor(output: Any) -> str:
        return f"{output.get_node().get_friendly_name()}:{output.get_index()}"

    def data(op: Any) -> tuple[str, ...]:
        sources = [op.input_value(i) for i in range(op.get_input_size())]
        return tuple(tensor(s) for s in sources if s.get_node().get_type_name() != "Constant")

    nodes = [
        Node(
            op.get_friendly_name(),
            op.get_type_name(),
            data(op),
            tuple(tensor(output) for output in op.outputs()),
        )
        for op in model.get_ordered_ops()
        if op.get_type_name() not in ("Constant", "Parameter", "Result")
    ]
    result = model.get_results()[0].input_value(0)
    return scopes(nodes, image=tensor(model.input(0)), result=tensor(result))
