"""INT8 for OpenVINO by NNCF: which ranges, and which layers stay float."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from mipkd.core.records import PatchSet, QuantPlan, QuantScheme

# Recipes for ranges of activations, the usual one first.
CLIPPED, WHOLE = "clipped", "whole"
RANGE_ESTIMATORS = (CLIPPED, WHOLE)
LEARNED = "learned"
_CLIPPED = 1e-5  # share of values that a clipped range leaves out
_PLACED_FOR = ("GPU", "NPU")  # devices whose quantisers NNCF places otherwise than for a CPU


@dataclass(frozen=True)
class NncfInt8:
    """How the models of one ONNX file are quantised for a device."""

    file: Path  # that the models were converted from
    patches: PatchSet
    device: str
    saturates: bool  # sums of 8-bit products: weights get 7 bits
    scheme: QuantScheme | None = None  # learned with the weights: its ranges, its floats

    def convert(self) -> Any:
        """The float model, ready to be quantised: operations are called as in the ONNX file, and
        what a convolution reads joined has one range.

        Not of one trained for INT8: those convolutions were left float (`OvTuner.quant_scheme`).
        """
        from calibration.patches import as_batches
        from targets._openvino.devices import package
        from targets._openvino.fake_quantize import name_as_in
        from targets._openvino.joins import with_one_range

        model = package().convert_model(str(self.file))
        name_as_in(model, self.file)
        return model if self.scheme else with_one_range(model, as_batches(self.patches))

    def quantize_by_plan(self, model: Any, plan: QuantPlan) -> tuple[Any, tuple[str, ...]]:
        """The model in INT8, and notes on what stays in another precision."""
        from targets._openvino.fake_quantize import restore_floats

        floats = [layer.name for layer in plan.floats]
        edited = restore_floats(self.quantize_all(model, plan.ranges), model, floats)
        return edited, (f"{plan.counted} stay {plan.rest.upper()}",)

    def quantize_by_recipe(self, model: Any, other: str) -> tuple[Any, tuple[str, ...]]:
        """The model in INT8, and notes; first and last convolution and the skips stay in `other`.

        What each part of that recipe costs and saves: docs/decisions/0003-int8-recipes.md.
        """
        from calibration.sensitive_layers import ATTENTION_NOTE
        from targets._openvino.joins import readers_of_scaled, restore_join

        found = sensitive_layers_of(model)
        ignored = list(found.parts)
        quantized = self._quantize(model, CLIPPED, ignored, attention=found.attention)
        for conv in readers_of_scaled(quantized):
            if conv.get_friendly_name() in ignored:
                restore_join(conv)
        quantized.validate_nodes_and_infer_types()
        notes = (found.note_on_floats(other.upper()),)
        return quantized, (*notes, ATTENTION_NOTE) if found.attention else notes

    def quantize_all(self, model: Any, estimator: str) -> Any:
        """The model with everything in INT8 that can be; a search takes floats out of it."""
        if self.scheme is None:
            return self._quantize(model, estimator, [])
        from targets._openvino.fake_quantize import factors, restore_floats, with_grids

        quantized = self._quantize(model, LEARNED, [])
        quantized = restore_floats(quantized, model, self.scheme.floats)
        return with_grids(quantized, self.scheme.grids, factors(model, self.file))

    def _quantize(
        self, model: Any, estimator: str, ignored: list[str], *, attention: bool = False
    ) -> Any:
        """Quantise by NNCF's mixed preset.

        Raises:
            UnsupportedError: the model is quantised already.
        """
        import nncf

        from calibration.patches import as_batches
        from targets._openvino.fake_quantize import is_quantized, with_exact_image
        from targets._openvino.joins import scaled_parts

        if is_quantized(model):
            raise UnsupportedError(
                "int8: the graph is quantised already (it holds FakeQuantize or Q/DQ)",
                hint="give the float model that it was made from",
            )
        logging.getLogger("nncf").setLevel(logging.ERROR)  # its own call alters shared handlers
        ignored = [*ignored, *scaled_parts(model)]
        kind = self.device.partition(".")[0]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(as_batches(self.patches)),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice[kind if kind in _PLACED_FOR else "ANY"],
            subset_size=self.patches.count,
            model_type=nncf.ModelType.TRANSFORMER if attention else None,
            advanced_parameters=_advanced_parameters(estimator, saturates=self.saturates),
            ignored_scope=nncf.IgnoredScope(names=ignored),
        )
        return with_exact_image(quantized)


def _advanced_parameters(estimator: str, *, saturates: bool) -> Any:
    """How a range comes from the patches: "clipped", of each patch all but 1 value in 100,000 and
    over all patches the widest; "whole", the least and the greatest value. NNCF's own means of the
    patches' ranges clip whatever is brighter and took RLFN twice the floats. "learned" ones are set
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
    if estimator == LEARNED:
        given["disable_bias_correction"] = True
    if estimator in (CLIPPED, WHOLE):
        statistics = {
            CLIPPED: (StatisticsType.QUANTILE, StatisticsType.QUANTILE),
            WHOLE: (StatisticsType.MIN, StatisticsType.MAX),
        }[estimator]
        given["activations_range_estimator_params"] = RangeEstimatorParameters(
            *(
                StatisticsCollectorParameters(statistic, aggregator, quantile_outlier_prob=_CLIPPED)
                for statistic, aggregator in zip(
                    statistics, (AggregatorType.MIN, AggregatorType.MAX), strict=True
                )
            )
        )
    return AdvancedQuantizationParameters(**given)


def sensitive_layers_of(model: Any) -> Any:
    """The sensitive layers of a converted graph: conversion fuses and renames operations."""
    from calibration.sensitive_layers import Node, find_sensitive_layers

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
    return find_sensitive_layers(nodes, image=tensor(model.input(0)), result=tensor(result))
