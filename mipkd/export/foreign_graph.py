"""A foreign ONNX file as it came: what is refused of it, and what its rewritings are held against.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.finite import check_finite
from mipkd.export.as_float32 import other_floats
from mipkd.export.onnx import open_session
from mipkd.export.opset import largest_opset, operators_in, opset_of
from mipkd.export.parity import (
    FloatArray,
    Run,
    find_first_difference,
    in_unit_range,
    relative_gap,
    rounding_of,
    runner,
)

# ONNX's own operators and those of ONNX Runtime: QLinearAdd, MatMulIntegerToFloat, MatMulNBits.
_QUANTIZED = re.compile("[Qq]uantize|Integer|^QLinear|^QGemm$|NBits$")
_RGB = "known: float of shape [N, 3, H, W], RGB"
_FLOATS = ("float", "float16", "double")


@dataclass(frozen=True)
class Rewriting:
    """A model after one step, and how far its image may be from that of the file that came."""

    step: str
    model: Any
    bound: float
    hint: str
    in_unit_range: bool = False  # it takes images in [0, 1], whatever the file's range is


@dataclass(frozen=True)
class Original:
    """The file that came, as ONNX Runtime computes it."""

    path: Path
    model: Any
    run: Run
    size: tuple[int | None, int | None]  # height and width, where they are fixed

    def check(
        self, steps: Sequence[Rewriting], images: Sequence[FloatArray], image_range: float = 1.0
    ) -> None:
        """Compare the model after each step with the file, which takes images in `image_range`.

        Raises:
            UnsupportedError: one differs; names the step and the first operator that does.
        """
        came = in_unit_range(self.run, image_range)
        ranges = [1.0 if one.in_unit_range else image_range for one in steps]
        runs = [
            in_unit_range(open_model(one.model), theirs)
            for one, theirs in zip(steps, ranges, strict=True)
        ]
        for lr_NCHW in (self._fit(one) for one in images):
            expected = came(lr_NCHW)
            for after, run, theirs in zip(steps, runs, ranges, strict=True):
                gap = relative_gap(expected, run(lr_NCHW))
                if gap > after.bound and gap > rounding_of(came, lr_NCHW):
                    both = (lr_NCHW * np.float32(one) for one in (image_range, theirs))
                    raise self._refusal(after, gap, *both)

    def _refusal(
        self, after: Rewriting, gap: float, lr_before: FloatArray, lr_after: FloatArray
    ) -> UnsupportedError:
        bound, (height, width) = after.bound, lr_before.shape[2:]
        first = find_first_difference(self.model, after.model, lr_before, lr_after, bound=bound)
        return UnsupportedError(
            f"{self.path}: {after.step} changes its image by {gap:.2g} of the largest value, "
            f"at LR {width}x{height}{f'; the first that differs is {first}' if first else ''}",
            hint=after.hint,
        )

    def _fit(self, lr_NCHW: FloatArray) -> FloatArray:
        """An image cut, or repeated, to the size that the file takes."""
        has = lr_NCHW.shape[2:]
        height, width = (mine or side for mine, side in zip(self.size, has, strict=True))
        pad = ((0, 0), (0, 0), (0, max(0, height - has[0])), (0, max(0, width - has[1])))
        return np.ascontiguousarray(np.pad(lr_NCHW, pad, mode="wrap")[..., :height, :width])


def open_original(path: Path) -> Original:
    """The file that came, if it is of a kind that is known and ONNX Runtime opens it.

    Raises:
        UsageError: not an ONNX file.
        UnsupportedError: of another kind.
    """
    model = _read(path)
    try:
        run = runner(open_session(str(path)))
    except Exception as error:  # onnxruntime has no public base class
        raise _explain_refusal(path, model, error) from error
    sides = list(inputs_of(model)[0].type.tensor_type.shape.dim)[2:]
    height, width = (dim.dim_value or None for dim in sides)
    return Original(path, model, run, (height, width))


def open_model(model: Any) -> Run:
    """A model in memory as a function."""
    return runner(open_session(model.SerializeToString()))


def inputs_of(model: Any) -> list[Any]:
    """The graph's inputs without those that old files list for its weights."""
    constants = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in constants]


def external_files(path: Path) -> list[Path]:
    """Files beside a graph in which it keeps its weights; none where it cannot be read."""
    try:
        tensors = onnx.load(path, load_external_data=False).graph.initializer
    except (OSError, DecodeError, ValueError):
        return []
    held = [tensor for tensor in tensors if uses_external_data(tensor)]
    names = {e.value for tensor in held for e in tensor.external_data if e.key == "location"}
    return [path.parent / name for name in sorted(names)]


def _read(path: Path) -> Any:
    try:
        model = onnx.load(path)
        _check_opset(model, path)
        onnx.checker.check_model(model)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: not an ONNX graph: {first}") from error
    check_finite(path, _weights(model))
    _check_ends(model, path)
    _check_operators(model, path)
    return model


def _weights(model: Any) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every constant by its name, but one number that is infinite: a bound of Clip or Where."""
    held = [(t.name, t) for t in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            held.append((node.output[0], node.attribute[0].t))
    arrays = ((name, numpy_helper.to_array(tensor)) for name, tensor in held)
    for name, values in arrays:
        if values.ndim or values.dtype.kind not in "fV" or not np.isinf(values):
            yield name, values


def _check_opset(model: Any, path: Path) -> None:
    """
    Raises:
        UnsupportedError: newer than what is installed here, or none.
    """
    found, most = opset_of(model), largest_opset()
    if found > most:
        raise UnsupportedError(
            f"{path}: opset {found} is newer than the installed onnx and onnxruntime know: {most}",
            hint=f"export it with opset {most} or older, or update both",
        )
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"{path}: IR version {model.ir_version} is newer than the installed onnx knows: "
            f"{onnx.IR_VERSION}",
            hint="export it with an older onnx, or update this one",
        )


def _check_ends(model: Any, path: Path) -> None:
    graph, images = model.graph, inputs_of(model)
    if len(images) != 1 or len(graph.output) != 1:
        raise UnsupportedError(
            f"{path}: {len(images)} inputs and {len(graph.output)} outputs",
            hint="known: one image in, one image out",
        )
    for value, whose in ((images[0], "input"), (graph.output[0], "output")):
        tensor = value.type.tensor_type
        shape = [d.dim_value or d.dim_param or "?" for d in tensor.shape.dim]
        # An output's shape may be unknown until the graph runs.
        is_image = whose == "output" or (len(shape) == 4 and shape[1] == 3)
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        if not is_image or kind not in _FLOATS:
            channels_last = len(shape) == 4 and shape[3] == 3
            raise UnsupportedError(
                f"{path}: its {whose} is {kind} of shape {shape}",
                hint=f"it is NHWC: transpose it; {_RGB}" if channels_last else _RGB,
            )


def _check_operators(model: Any, path: Path) -> None:
    kinds = {kind for _, kind in operators_in(model)}
    if quantized := sorted(kind for kind in kinds if _QUANTIZED.search(kind)):
        raise UnsupportedError(
            f"{path}: already quantised ({', '.join(quantized)})",
            hint="give the FP32 graph; quantising is done here, per target",
        )
    if "Loop" in kinds:  # a foreign file could make it run for ever
        raise UnsupportedError(
            f"{path}: it holds a Loop, of which nobody can tell when it ends",
            hint="export it without loops: traced, not scripted",
        )


def _explain_refusal(path: Path, model: Any, error: Exception) -> UnsupportedError:
    """Why ONNX Runtime does not open a file that is an ONNX graph."""
    foreign = sorted({domain for domain, _ in operators_in(model)} - {"", "ai.onnx"})
    hint = "export it with ONNX's own operators"
    if others := [kind for kind in other_floats(model) if kind != "float16"]:
        hint = f"it holds {' and '.join(others)}: export it in float32"
    elif foreign:
        hint += f", without those of {', '.join(foreign)}"
    why = str(error).splitlines()[0].rpartition("] : ")[2]
    return UnsupportedError(f"{path}: ONNX Runtime cannot run it: {why}", hint=hint)
