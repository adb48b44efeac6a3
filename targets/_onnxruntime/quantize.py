"""INT8 for ONNX Runtime's CPU provider: U8 activations, S8 weights per output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipkd.core.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mipkd.core.records import Graph, PatchSet, QuantScheme
    from targets.base import BuildRequest, FloatArray

# Recipes for ranges of activations. Percentiles took ten times as long and lost more.
WHOLE = "whole"  # from the least to the greatest value
RANGE_ESTIMATORS = (WHOLE,)
# A ReLU named here gives its range to the convolution before it and costs nothing.
_QUANTISED = ("Conv", "MatMul", "Relu", "Clip")
LEARNED = "learned"


def quantize_graph(request: BuildRequest, file: Path, *, saturates: bool) -> tuple[str, ...]:
    """Write the request's graph in INT8 to `file`; gives notes.

    By its plan; without one the first convolution stays float: measured on EDSR-baseline x4 and
    Set14 that costs 5 % of the speed and saves a tenth of the loss; the last one too would cost
    20 %.
    """
    import onnx

    from calibration.sensitive_layers import (
        ATTENTION_NOTE,
        refuse_nothing_quantized,
        sensitive_layers_of,
    )
    from targets._onnx.unquantize import operations, restore_floats

    assert request.patches is not None, "accepted with them"
    original = prepare_graph(request.graph, file.parent)
    settings = OrtInt8(request.patches, saturates, request.scheme)
    if plan := request.plan:
        floats = [layer.name for layer in plan.floats]
        quantized = restore_floats(settings.quantize_all(original, file), original, floats)
        notes = [f"{plan.counted} stay FP32"]
    else:
        found = sensitive_layers_of(original)
        quantized = settings.quantize_all(original, file, ignored=found.head)
        notes = [f"{len(found.head)} convolution stays FP32: the first"]
        notes += [ATTENTION_NOTE] if found.attention else []
    refuse_nothing_quantized(node.op_type for node in operations(quantized))
    onnx.save(quantized, file)
    if saturates:
        notes.append("weights of 7 bits: no VNNI is known of the CPU, it would saturate with 8")
    return tuple(notes)


def prepare_graph(graph: Graph, folder: Path) -> Any:
    """The graph as the quantiser wants it: shapes inferred, constants folded.

    Raises:
        UnsupportedError: it is quantised already.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from targets._onnx.unquantize import refuse_quantized

    refuse_quantized(onnx.load(graph.file, load_external_data=False))
    file = folder / "prepared.onnx"
    with quiet("root"):
        quant_pre_process(str(graph.file), str(file), skip_symbolic_shape=True)
    model = onnx.load(file)
    file.unlink()
    return model


@dataclass(frozen=True)
class OrtInt8:
    """How a model is quantised for one CPU."""

    patches: PatchSet
    saturates: bool  # sums of 8-bit products: weights get 7 bits
    scheme: QuantScheme | None = None  # learned with the weights: its ranges, its floats

    @property
    def weights_most(self) -> int:
        """The integer that a channel's largest weight becomes."""
        return 64 if self.saturates else 127

    def quantize_all(self, model: Any, file: Path, *, ignored: Sequence[str] = ()) -> Any:
        """All convolutions and products with weights in INT8 but for `ignored`.

        `file` is overwritten. Ranges of activations are whole where none were learned.
        """
        import onnx
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        from targets._onnx.unquantize import restore_floats

        copy = onnx.ModelProto()
        copy.CopyFrom(model)  # the quantiser moves its weights into a file that it then deletes
        with quiet("root"):
            quantize_static(
                copy,
                str(file),
                _reader(model.graph.input[0].name, self.patches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=self.saturates,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=list(ignored),
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "QDQKeepRemovableActivations": True,  # for what becomes float again
                    "TensorQuantOverrides": _overrides(model, self.scheme),
                },
            )
        return restore_floats(onnx.load(file), model, self.scheme.floats if self.scheme else ())


def _reader(name: str, patches: PatchSet) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    from calibration.patches import as_batches

    class Patches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter({name: batch} for batch in as_batches(patches))

        def get_next(self) -> dict[str, FloatArray] | None:
            return next(self.left, None)

    return Patches()


def _overrides(model: Any, scheme: QuantScheme | None) -> dict[str, list[dict[str, Any]]]:
    """Scale and zero point by name in the float model; the image keeps its 256 levels."""
    import numpy as np
    from onnxruntime.quantization import QuantType

    inputs = {node.name: node.input for node in model.graph.node}
    inputs[""] = [one.name for one in model.graph.output]
    wanted = dict.fromkeys(_images(model), (1 / 255, 0))
    for grid in scheme.grids if scheme else ():
        operation, index = grid.readers[0]
        wanted[inputs[operation][index]] = (grid.scale, grid.zero_point)
    return {
        tensor: [
            {
                "quant_type": QuantType.QUInt8,
                "scale": np.array(scale, np.float32),
                "zero_point": np.array(zero, np.uint8),
            }
        ]
        for tensor, (scale, zero) in wanted.items()
    }


def _images(model: Any) -> list[str]:
    """Names of the image and of the image with padding."""
    found = [model.graph.input[0].name]
    for node in model.graph.node:
        if node.op_type == "Pad" and node.input[0] in found:
            found.append(node.output[0])
    return found
