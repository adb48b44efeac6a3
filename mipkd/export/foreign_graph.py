"""A foreign ONNX file as it came: what is refused of it, and what its rewritings are held against.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import re
from collections import Counter
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

from mipkd.core.errors import MipkdError, UnsupportedError, UsageError
from mipkd.core.finite import check_finite
from mipkd.export.as_float32 import other_floats
from mipkd.export.onnx import open_session
from mipkd.export.opset import (
    LEAST,
    count_inlined,
    graphs_in,
    largest_opset,
    nodes_in,
    operators_in,
    opset_of,
)
from mipkd.export.parity import (
    EXACT,
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
_RANDOM = re.compile("^(Bernoulli|Multinomial|Random.*|Dropout)$")
_OWN = ("", "ai.onnx")
_MOST_NODES = 30_000  # with those of functions, each time: the largest nets have a third of that


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
            UnsupportedError: one differs or cannot be run, named by its step and, if it differs,
                the first operator that does; or the file gives another image each time.
        """
        came = in_unit_range(self.run, image_range)
        ranges = [1.0 if one.in_unit_range else image_range for one in steps]
        runs = [
            in_unit_range(self.open_after(one), theirs)
            for one, theirs in zip(steps, ranges, strict=True)
        ]
        for number, lr_NCHW in enumerate(self._fit(one) for one in images):
            expected = came(lr_NCHW)
            if number == 0:
                self._check_repeats(expected, came(lr_NCHW))
            for after, run, theirs in zip(steps, runs, ranges, strict=True):
                try:
                    gap = relative_gap(expected, run(lr_NCHW))
                except Exception as error:  # onnxruntime has no public base class
                    raise self._cannot("run", after, error) from error
                if gap > after.bound and gap > rounding_of(came, lr_NCHW):
                    both = (lr_NCHW * np.float32(one) for one in (image_range, theirs))
                    raise self._refusal(after, gap, *both)

    def open_after(self, after: Rewriting) -> Run:
        """The model after a step as a function.

        Raises:
            UnsupportedError: ONNX Runtime does not open it; names the step.
        """
        try:
            return open_model(after.model)
        except Exception as error:  # onnxruntime has no public base class
            raise self._cannot("open", after, error) from error

    def _cannot(self, verb: str, after: Rewriting, error: Exception) -> UnsupportedError:
        what = (
            f"{self.path}: after {after.step} ONNX Runtime cannot {verb} it: {_first_line(error)}"
        )
        return UnsupportedError(what, hint=after.hint)

    def _check_repeats(self, once: FloatArray, again: FloatArray) -> None:
        if relative_gap(once, again) <= EXACT:
            return
        kinds = sorted({kind for _, kind in operators_in(self.model) if _RANDOM.match(kind)})
        holds = f": it holds {', '.join(kinds)}" if kinds else ""
        raise UnsupportedError(
            f"{self.path}: it gives another image each time{holds}",
            hint="export it in eval mode, without what is random",
        )

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
    for graph in graphs_in(model):  # ONNX Runtime refuses two nodes of one name
        name_nodes(graph)
    try:
        run = open_model(model)
    except Exception as error:  # onnxruntime has no public base class
        raise _explain_refusal(path, model, error) from error
    sides = list(inputs_of(model)[0].type.tensor_type.shape.dim)[2:]
    height, width = (dim.dim_value or None for dim in sides)
    return Original(path, model, run, (height, width))


def open_model(model: Any) -> Run:
    """A model in memory as a function."""
    return runner(open_session(model.SerializeToString()))


def name_nodes(graph: Any) -> None:
    """Give each node a name of its own, in UTF-8: quantisers know operations by it."""
    names = Counter(node.name for node in graph.node)
    for number, node in enumerate(graph.node):
        if not node.name or not isinstance(node.name, str) or names[node.name] > 1:
            name = f"{node.op_type}_{number}"
            while names[name]:
                name += "_"
            node.name = name
            names[name] += 1


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
        if (count := count_inlined(model)) > _MOST_NODES:
            raise UnsupportedError(
                f"{path}: it holds {count:.3g} operators, those of its functions each time",
                hint=f"known: up to {_MOST_NODES}",
            )
        _check_names(model, path)
        onnx.checker.check_model(model)
        _check_types(model, path)
        check_finite(path, _weights(model))
        _check_ends(model, path)
        _check_operators(model, path)
    except MipkdError:
        raise
    except Exception as error:  # whatever a reader of broken headers meets
        why = _first_line(error) or type(error).__name__
        raise UsageError(f"{path}: not an ONNX graph: {why}") from error
    return model


def _weights(model: Any) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every constant by its name, those of branches and functions included, but one number that is
    infinite: a bound of Clip or Where."""
    held = [(t.name, t) for graph in graphs_in(model) for t in graph.initializer]
    for node in nodes_in(model):
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and node.domain in _OWN and value is not None:
            held.append((node.output[0], value.t))
    for name, values in ((name, numpy_helper.to_array(tensor)) for name, tensor in held):
        if values.ndim or values.dtype.kind not in "fV" or not np.isinf(values):
            yield name, values


def _check_names(model: Any, path: Path) -> None:
    """
    Raises:
        UsageError: protobuf gives a name as bytes, as it is no UTF-8.
    """
    names: list[Any] = [name for one in nodes_in(model) for name in (*one.input, *one.output)]
    for graph in graphs_in(model):
        held = (*graph.input, *graph.output, *graph.initializer)
        names += [graph.name, *(one.name for one in held)]
    names += [text for one in model.metadata_props for text in (one.key, one.value)]
    if bad := [name for name in names if not isinstance(name, str)]:
        raise UsageError(
            f"{path}: a tensor's name is no UTF-8: {bad[0]!r}",
            hint="export it with names in ASCII",
        )


def _check_types(model: Any, path: Path) -> None:
    """
    Raises:
        UsageError: a weight of a type that ONNX has not.
    """
    held = [tensor for graph in graphs_in(model) for tensor in graph.initializer]
    held += [a.t for one in nodes_in(model) for a in one.attribute if a.HasField("t")]
    for tensor in held:
        if tensor.data_type not in onnx.TensorProto.DataType.values():
            raise UsageError(
                f"{path}: not an ONNX graph: {tensor.name or 'a constant'} is of data type "
                f"{tensor.data_type}, which ONNX has not"
            )


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
        kind = _type_name(tensor.elem_type)
        if not is_image or kind not in _FLOATS:
            channels_last = len(shape) == 4 and shape[3] == 3
            raise UnsupportedError(
                f"{path}: its {whose} is {kind} of shape {shape}",
                hint=f"it is NHWC: transpose it; {_RGB}" if channels_last else _RGB,
            )


def _type_name(kind: int) -> str:
    known = kind in onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(kind).lower() if known else f"data type {kind}"


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
    foreign = sorted({domain for domain, _ in operators_in(model)} - set(_OWN))
    why, opset, hint = _first_line(error), opset_of(model), "report the graph"
    if others := [kind for kind in other_floats(model) if kind != "float16"]:
        hint = f"it holds {' and '.join(others)}: export it in float32"
    elif foreign:
        hint = f"export it with ONNX's own operators, without those of {', '.join(foreign)}"
    elif opset < LEAST and "NOT_IMPLEMENTED" in str(error):
        hint = f"its opset is {opset}: export it with opset {LEAST} or later"
    return UnsupportedError(f"{path}: ONNX Runtime cannot run it: {why}", hint=hint)


def _first_line(error: Exception) -> str:
    """What an error says, without the head that ONNX Runtime gives its own."""
    return next(iter(str(error).splitlines()), "").rpartition("] : ")[2]
