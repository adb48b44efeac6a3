"""Sessions on LiteRT's interpreter with XNNPACK, and what it executes.

LiteRT stores sizes in a model. It is rewritten for each size, so that its delegates see no size
that changes, and sizes that a model computes of its image's are constants there.
Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mipkd.core.errors import UsageError
from mipkd.core.quiet import quiet
from targets._litert import flatbuffer
from targets.base import Session, check_options

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.base import FloatArray

OPTIONS: dict[str, str] = {}  # that a model may bring along
KEPT = 4  # sizes in memory
_SIDE = 32  # LR pixels of the image that kernels are counted on
_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
_DELEGATE = "TfLiteXNNPackDelegate"
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "int8": "int8", "uint8": "int8"}


class LiteRtSession(Session):
    """An interpreter on all cores for each size, of the last few."""

    def __init__(self, model: Path | bytes, options: Mapping[str, str]) -> None:
        check_options(options, OPTIONS, "litert")
        self._content = model if isinstance(model, bytes) else _read(model)
        tensors = flatbuffer.unpack(self._content).subgraphs[0]
        image = tensors.tensors[tensors.inputs[0]]
        types = flatbuffer.schema().TensorType
        self.takes_int8: bool = image.type == types.INT8
        self.takes_uint8 = self.takes_int8 or image.type == types.UINT8
        self._kept: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W)."""
        lr_NHWC = np.ascontiguousarray(lr_NCHW.transpose(0, 2, 3, 1))
        interpreter = self._at(lr_NHWC.shape)
        number = interpreter.get_input_details()[0]["index"]
        interpreter.set_tensor(number, as_int8(lr_NHWC) if self.takes_int8 else lr_NHWC)
        interpreter.invoke()
        sr_NHWC = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        sr_NHWC = as_uint8(sr_NHWC) if self.takes_int8 else sr_NHWC
        return sr_NHWC.transpose(0, 3, 1, 2)

    def forget_shapes(self) -> None:
        """Drop the interpreters of sizes so far."""
        self._kept.clear()

    def close(self) -> None:
        """Drop all interpreters and their threads."""
        self._kept.clear()

    def _at(self, image_NHWC: tuple[int, ...]) -> Any:
        if image_NHWC not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            self._kept[image_NHWC] = interpret(at_size(self._content, image_NHWC))
        self._kept.move_to_end(image_NHWC)
        return self._kept[image_NHWC]


def as_int8(levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Levels of uint8 less 128, as models on int8 take them."""
    return (levels ^ np.uint8(128)).view(np.int8)


def as_uint8(levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Levels of uint8 of what models on int8 give."""
    return levels.view(np.uint8) ^ np.uint8(128)


def at_size(content: bytes, image_NHWC: Sequence[int]) -> bytes:
    """A model for images of one size: sizes that it computes of theirs, and those of all tensors.

    Raises:
        UsageError: it is no model, or takes no image of that size.
    """
    model = flatbuffer.unpack(content)
    graph = model.subgraphs[0]
    if list(graph.tensors[graph.inputs[0]].shape) == list(image_NHWC):
        return content
    flatbuffer.set_constants(model, image_NHWC)
    try:
        found = interpret(flatbuffer.pack(model), delegate=False, image_NHWC=image_NHWC)
    except UsageError as error:
        size = f"{image_NHWC[2]}x{image_NHWC[1]}"
        what = f"litert: no image of {size} pixels: {error.what}"
        raise UsageError(what, hint="give a larger one") from error
    shapes = {one["index"]: one["shape"] for one in found.get_tensor_details()}
    features = {number: shapes[number] for number in _features(model)}
    flatbuffer.set_sizes(model, image_NHWC, features)
    return flatbuffer.pack(model)


def interpret(
    content: bytes,
    *,
    delegate: bool = True,
    image_NHWC: Sequence[int] | None = None,
    keep_all: bool = False,
) -> Any:
    """An interpreter that is ready to run; `keep_all` keeps what each operator makes.

    Raises:
        UsageError: LiteRT refuses the model, or images of that size.
    """
    try:
        return _interpret(content, delegate, image_NHWC, keep_all)
    except (RuntimeError, ValueError) as error:
        what = f"litert: {' '.join(str(error).split())}"
        raise UsageError(what, hint="give the .tflite that a run built") from error


def _interpret(
    content: bytes, delegate: bool, image_NHWC: Sequence[int] | None, keep_all: bool
) -> Any:
    with quiet(), _silent():
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        found = Interpreter(
            model_content=content,
            num_threads=_cores(),
            experimental_op_resolver_type=OpResolverType.AUTO if delegate else plain,
            experimental_preserve_all_tensors=keep_all,
        )
        if image_NHWC is not None:
            number = found.get_input_details()[0]["index"]
            found.resize_tensor_input(number, list(image_NHWC))
        found.allocate_tensors()
    return found


def count_kernels(file: Path, multiple: int) -> dict[str, int]:
    """A model's convolutions by the type of what they read, in which XNNPACK and LiteRT's own
    kernels compute them."""
    side = -(-_SIDE // multiple) * multiple
    interpreter = interpret(at_size(_read(file), (1, side, side, 3)))
    found: Counter[str] = Counter()
    for op in interpreter._get_ops_details():
        if op["op_name"] in _PRODUCTS:
            kind = np.dtype(op["operand_types"][2 if op["op_name"] == "TRANSPOSE_CONV" else 0])
            found[_PRECISIONS.get(kind.name, kind.name)] += 1
    return dict(found)


def _cores() -> int:
    """Those that this process may use; LiteRT itself would take one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """LiteRT says past Python's streams, without a way to ask it not to, that it uses XNNPACK."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no such stream
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _features(model: Any) -> set[int]:
    """Numbers of the tensors that are no constants."""
    graph = model.subgraphs[0]
    return {*graph.inputs, *(number for op in graph.operators for number in op.outputs)}


def _read(file: Path) -> bytes:
    if file.suffix != ".tflite":
        raise UsageError(
            f"litert: {file}: no LiteRT model: its name does not end in .tflite",
            hint="give the .tflite that a run built",
        )
    return file.read_bytes()
