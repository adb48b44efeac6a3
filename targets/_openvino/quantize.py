"""INT8 for OpenVINO by NNCF: which ranges, and which layers stay float."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from mipkd.core.records import PatchSet, QuantPlan, Rounding

# Recipes for ranges of activations, the usual one first.
CLIPPED, WHOLE, AVERAGED = "clipped", "whole", "averaged"
RANGES = (CLIPPED, WHOLE, AVERAGED)
LEARNED = "learned"
_CLIPPED = 1e-5  # share of values that a clipped range leaves out
_PLACED_FOR = ("GPU", "NPU")  # devices whose quantisers NNCF places otherwise than for a CPU


def quantized(
    model: Any,
    patches: PatchSet,
    *,
    device: str,
    rest: str,
    file: Path,
    saturates: bool,
    plan: QuantPlan | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """The model of an ONNX file in INT8 for a device, and notes: what stays in `rest`, a float
    precision.

    By `plan`; without one first and last convolution and the skips stay float. What each part of
    that recipe costs and saves: docs/decisions/0003-int8-recipes.md.
    """
    from calibration.sensitive_layers import ATTENTION_NOTE

    if plan:
        from targets._openvino.fake_quantize import with_floats

        edited = with_floats(
            everything(
                model,
                patches,
                device=device,
                ranges=plan.ranges,
                file=file,
                saturates=saturates,
                rounding=plan.tuned.rounding if plan.tuned else None,
            ),
            model,
            [layer.name for layer in plan.floats],
        )
        return edited, (f"{plan.counted} stay {rest.upper()}",)
    found = scopes_of(model)
    fixed = list(found.sensitive)
    made = _by_nncf(
        model, patches, device, CLIPPED, fixed, attention=found.attention, saturates=saturates
    )
    notes = [found.told(rest.upper())]
    return made, (*notes, ATTENTION_NOTE) if found.attention else tuple(notes)


def everything(
    model: Any,
    patches: PatchSet,
    *,
    device: str,
    ranges: str,
    file: Path,
    saturates: bool,
    rounding: Rounding | None = None,
) -> Any:
    """The model with all in INT8 that can be: what a search takes floats out of.

    `file` is the ONNX file that the model was converted from. With `rounding`, which was learned
    with the weights, feature maps are on its grids, and its floats are left out.
    """
    if rounding is None:
        return _by_nncf(model, patches, device, ranges, [], attention=False, saturates=saturates)
    from targets._openvino.fake_quantize import factors, on_grids, with_floats

    made = _by_nncf(model, patches, device, LEARNED, [], attention=False, saturates=saturates)
    made = with_floats(made, model, rounding.floats)
    return on_grids(made, rounding.grids, factors(model, file))


def _by_nncf(
    model: Any,
    patches: PatchSet,
    device: str,
    ranges: str,
    ignored: list[str],
    *,
    attention: bool,
    saturates: bool,
) -> Any:
    """NNCF's mixed preset.

    Raises:
        UnsupportedError: the model is quantised already.
    """
    import nncf

    from calibration.patches import as_batches
    from targets._openvino.fake_quantize import is_quantized, with_exact_image

    if is_quantized(model):
        raise UnsupportedError(
            "int8: the graph is quantised already (it holds FakeQuantize or Q/DQ)",
            hint="give the float model that it was made from",
        )
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own call alters shared handlers
    kind = device.partition(".")[0]
    made = nncf.quantize(
        model,
        nncf.Dataset(as_batches(patches)),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice[kind if kind in _PLACED_FOR else "ANY"],
        subset_size=patches.count,
        model_type=nncf.ModelType.TRANSFORMER if attention else None,
        advanced_parameters=_advanced(ranges, saturates=saturates),
        ignored_scope=nncf.IgnoredScope(names=ignored),
    )
    return with_exact_image(made)


def _advanced(ranges: str, *, saturates: bool) -> Any:
    """How a range comes from the patches: "clipped", of each patch all but 1 value in 100,000 and
    over all patches the widest; "whole", the least and the greatest value; "averaged", NNCF's own:
    the mean of the patches' ranges, which clips whatever is brighter. "learned" ones are set
    afterwards, and biases are as trained.

    NNCF gives the first convolution weights of 7 bits unless it is told that nothing saturates.
    """
    from nncf import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    given: dict[str, Any] = {} if saturates else {"overflow_fix": OverflowFix.DISABLE}
    if ranges == LEARNED:
        given["disable_bias_correction"] = True
    if ranges in (CLIPPED, WHOLE):
        statistics = {
            CLIPPED: (StatisticsType.QUANTILE, StatisticsType.QUANTILE),
            WHOLE: (StatisticsType.MIN, StatisticsType.MAX),
        }[ranges]
        given["activations_range_estimator_params"] = RangeEstimatorParameters(
            *(
                StatisticsCollectorParameters(statistic, aggregator, quantile_outlier_prob=_CLIPPED)
                for statistic, aggregator in zip(
                    statistics, (AggregatorType.MIN, AggregatorType.MAX), strict=True
                )
            )
        )
    return AdvancedQuantizationParameters(**given)


def scopes_of(model: Any) -> Any:
    """Found on the converted graph: conversion fuses and renames operations."""
    from calibration.sensitive_layers import Node, scopes

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
