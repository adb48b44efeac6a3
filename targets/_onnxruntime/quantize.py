"""INT8 for ONNX Runtime's CPU provider: U8 activations, S8 weights per output channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mipkd.core.errors import UnsupportedError
from mipkd.core.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mipkd.core.records import Graph, PatchSet, QuantPlan, Rounding
    from targets.base import FloatArray

# Recipes for ranges of activations. Percentiles took ten times as long and lost more.
WHOLE = "whole"  # from the least to the greatest value
RANGES = (WHOLE,)
# A ReLU named here gives its range to the convolution before it and costs nothing.
_QUANTISED = ("Conv", "MatMul", "Relu", "Clip")
LEARNED = "learned"


def quantized(
    graph: Graph, patches: PatchSet, file: Path, *, saturates: bool, plan: QuantPlan | None
) -> tuple[str, ...]:
    """Write the model in INT8 to `file`; gives notes.

    By `plan`; without one the first convolution stays float: measured on EDSR-baseline x4 and
    Set14 that costs 5 % of the speed and saves a tenth of the loss; the last one too would cost
    20 %.
    """
    import onnx

    from calibration.sensitive_layers import ATTENTION_NOTE, model_scopes
    from targets._onnx.unquantize import with_floats

    original = prepared(graph, file.parent)
    if plan:
        made = everything(
            original,
            patches,
            file,
            saturates=saturates,
            rounding=plan.tuned.rounding if plan.tuned else None,
        )
        onnx.save(with_floats(made, original, [layer.name for layer in plan.floats]), file)
        notes = [f"{plan.counted} stay FP32"]
    else:
        found = model_scopes(original)
        onnx.save(
            everything(original, patches, file, saturates=saturates, ignored=found.head),
            file,
        )
        notes = [f"{len(found.head)} convolution stays FP32: the first"]
        notes += [ATTENTION_NOTE] if found.attention else []
    if saturates:
        notes.append("weights of 7 bits: no VNNI is known of the CPU, it would saturate with 8")
    return tuple(notes)


def prepared(graph: Graph, folder: Path) -> Any:
    """The graph as the quantiser wants it: shapes inferred, constants folded.

    Raises:
        UnsupportedError: it is quantised already.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from targets._onnx.unquantize import is_quantized

    if is_quantized(onnx.load(graph.file, load_external_data=False)):
        raise UnsupportedError(
            "int8: the graph is quantised already (it holds Q/DQ)",
            hint="give the float model that it was made from",
        )
    file = folder / "prepared.onnx"
    with quiet("root"):
        quant_pre_process(str(graph.file), str(file), skip_symbolic_shape=True)
    model = onnx.load(file)
    file.unlink()
    return model


def everything(
    model: Any,
    patches: PatchSet,
    file: Path,
    *,
    saturates: bool,
    ignored: Sequence[str] = (),
    rounding: Rounding | None = None,
) -> Any:
    """All convolutions and products with weights in INT8 but for `ignored`; `file` is overwritten.

    Ranges of activations are whole, or those of `rounding`, learned with the weights; its floats
    are left out.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    from calibration.patches import as_batches
    from targets._onnx.unquantize import with_floats

    name = model.graph.input[0].name
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # the quantiser moves its weights into a file that it then deletes

    class Patches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter({name: batch} for batch in as_batches(patches))

        def get_next(self) -> dict[str, FloatArray] | None:
            return next(self.left, None)

    with quiet("root"):
        quantize_static(
            copy,
            str(file),
            Patches(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=saturates,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=list(ignored),
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "QDQKeepRemovableActivations": True,  # for what becomes float again
                "TensorQuantOverrides": _overrides(model, rounding),
            },
        )
    return with_floats(onnx.load(file), model, rounding.floats if rounding else ())


def weights_most(*, saturates: bool) -> int:
    """The integer that a channel's largest weight becomes."""
    return 64 if saturates else 127


def _overrides(model: Any, rounding: Rounding | None) -> dict[str, list[dict[str, Any]]]:
    """A tensor's grid, under its name in the float model; the image's is the image's own."""
    import numpy as np
    from onnxruntime.quantization import QuantType

    inputs = {node.name: node.input for node in model.graph.node}
    inputs[""] = [one.name for one in model.graph.output]
    wanted = dict.fromkeys(_images(model), (1 / 255, 0))
    for grid in rounding.grids if rounding else ():
        operation, index = grid.readers[0]
        wanted[inputs[operation][index]] = (grid.scale, grid.zero)
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
    """The image, and what is the image but for padding."""
    found = [model.graph.input[0].name]
    for node in model.graph.node:
        if node.op_type == "Pad" and node.input[0] in found:
            found.append(node.output[0])
    return found
