"""Adopt a foreign ONNX graph: one RGB image in, one larger image out."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.finite import check_finite
from mipkd.core.images import ByteArray, psnr_y
from mipkd.core.records import Graph
from mipkd.export.onnx import PRODUCER, open_session

log = logging.getLogger(__name__)

Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
# ONNX's own operators and those of ONNX Runtime: QLinearAdd, MatMulIntegerToFloat, MatMulNBits.
_QUANTIZED = re.compile("[Qq]uantize|Integer|^QLinear|^QGemm$|NBits$")
_LEAST_PROBE_DB = 20.0
_MULTIPLES = (1, 2, 4, 8, 16)  # of height and width; windows are 8 or 16
_LEAST_OPSET = 13  # for per-channel scales
_RGB = "known: float of shape [N, 3, H, W], RGB"


def adopt(
    path: Path,
    *,
    scale: int | None,
    image_range: float | None,
    probe: Callable[[int], Sequence[Pair]],
    out: Path,
) -> Graph:
    """Write the graph, with [0, 1] in and out and free height and width, to `out`/model.onnx.

    Running it finds the scale and the multiple of its sizes, a probe on images the image range
    (1 or 255), unless given. Our own exports have metadata that tells them.

    Raises:
        UsageError: not an ONNX file.
        UnsupportedError: not a float RGB image in NCHW in and out, quantised already, or a
            size or range that cannot be settled.
    """
    model = _raise_opset(_read(path), path)
    facts = {p.key: p.value for p in model.metadata_props}
    ours = facts.get("producer") == PRODUCER
    was_fixed = _free_sizes(model)
    multiples = (int(facts["multiple"]),) if ours else _MULTIPLES
    found, multiple = _scale_and_multiple(model, path, multiples)
    if was_fixed:
        _check_other_sizes(model, path, found, multiple)
    if scale and scale != found:
        raise UsageError(f"{path}: its scale is x{found}, adopt.scale asks for x{scale}")
    if not ours:
        _convert_range(model, image_range or _probe_range(model, path, probe(found), multiple))
        _set_metadata(model, scale=found, multiple=multiple)
    file, content = out / "model.onnx", model.SerializeToString()
    file.write_bytes(content)
    return Graph(
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        role="student",
        scale=found,
        multiple=multiple,
        opset=_opset(model),
        family=facts.get("family", "onnx"),
        licence=facts.get("licence", "unknown"),
    )


def _read(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: not an ONNX graph: {first}") from error
    _check(model, path)
    return model


def _check(model: Any, path: Path) -> None:
    import onnx

    graph, images = model.graph, _inputs(model)
    check_finite(path, ((t.name, onnx.numpy_helper.to_array(t)) for t in graph.initializer))
    if len(images) != 1 or len(graph.output) != 1:
        raise UnsupportedError(
            f"{path}: {len(images)} inputs and {len(graph.output)} outputs",
            hint="known: one image in, one image out",
        )
    if quantized := {n.op_type for n in graph.node if _QUANTIZED.search(n.op_type)}:
        raise UnsupportedError(
            f"{path}: already quantised ({', '.join(sorted(quantized))})",
            hint="give the FP32 graph; quantising is done here, per target",
        )
    for value, whose in ((images[0], "input"), (graph.output[0], "output")):
        tensor = value.type.tensor_type
        shape = [d.dim_value or d.dim_param or "?" for d in tensor.shape.dim]
        # An output's shape may be unknown until the graph runs.
        is_image = whose == "output" or (len(shape) == 4 and shape[1] == 3)
        if not is_image or tensor.elem_type != onnx.TensorProto.FLOAT:
            kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            channels_last = len(shape) == 4 and shape[3] == 3
            raise UnsupportedError(
                f"{path}: its {whose} is {kind} of shape {shape}",
                hint=f"it is NHWC: transpose it; {_RGB}" if channels_last else _RGB,
            )


def _inputs(model: Any) -> list[Any]:
    """The graph's inputs without those that old files list for its weights."""
    constants = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in constants]


def _opset(model: Any) -> int:
    return next(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _raise_opset(model: Any, path: Path) -> Any:
    """The model, converted if its opset is older than quantisers accept."""
    from onnx import version_converter

    if _opset(model) >= _LEAST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _LEAST_OPSET)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedError(
            f"{path}: opset {_opset(model)} cannot be converted to {_LEAST_OPSET}: {error}",
            hint=f"export it with opset {_LEAST_OPSET} or later",
        ) from error


def _free_sizes(model: Any) -> bool:
    """Make heights and widths dynamic; whether they were fixed."""
    (image,) = _inputs(model)
    was_fixed = any(d.dim_value for d in list(image.type.tensor_type.shape.dim)[2:])
    for value, names in ((image, ("height", "width")), (model.graph.output[0], ("out_h", "out_w"))):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            dims[0].dim_value = 1
            for dim, name in zip(list(dims)[2:], names, strict=True):
                dim.dim_param = name
    del model.graph.value_info[:]
    return was_fixed


def _run(model: Any, lr_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = open_session(model.SerializeToString())
    (image,) = session.run(None, {session.get_inputs()[0].name: lr_NCHW})
    return np.asarray(image, dtype=np.float32)


def _scale_and_multiple(model: Any, path: Path, multiples: Sequence[int]) -> tuple[int, int]:
    """The integer scale, and the smallest multiple that heights and widths must be of."""
    why = ""
    for multiple in multiples:
        least = max(3, 24 // multiple | 1) * multiple  # an odd number of multiples
        try:
            ratios = _ratios(model, (least, least + 2 * multiple), (least + 4 * multiple, least))
        except Exception as error:  # onnxruntime has no public base class
            why = str(error).splitlines()[0]
            continue
        if len(ratios) == 1 and (ratio := ratios.pop()) == int(ratio):
            if ratio < 2:
                raise UnsupportedError(
                    f"{path}: its output is not larger than its input",
                    hint="known: super-resolution by a whole scale of 2 or more",
                )
            return int(ratio), multiple
        why = "output sizes do not follow input sizes by a whole scale"
    raise UnsupportedError(
        f"{path}: cannot be run at any size: {why}", hint="export it with dynamic height and width"
    )


def _ratios(model: Any, *sizes: tuple[int, int]) -> set[float]:
    found: set[float] = set()
    for height, width in sizes:
        shape = _run(model, np.zeros((1, 3, height, width), np.float32)).shape
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"its output has shape {list(shape)}, not [N, 3, H, W]")
        found |= {shape[2] / height, shape[3] / width}
    return found


def _check_other_sizes(model: Any, path: Path, scale: int, multiple: int) -> None:
    """Refuse a graph made for one size that computes something else at others.

    Away from the cut, a part of an image must give about the pixels of the whole.
    """
    side = max(48 // multiple, 2) * multiple
    rng = np.random.default_rng(0)
    whole = rng.random((1, 3, 2 * side, 2 * side), dtype=np.float32)
    inside = (..., slice(0, side * scale // 2), slice(0, side * scale // 2))
    of_whole = _run(model, whole)[inside]
    of_part = _run(model, np.ascontiguousarray(whole[..., :side, :side]))[inside]
    if not np.abs(of_whole - of_part).mean() <= 0.1 * of_whole.std():
        raise UnsupportedError(
            f"{path}: made for one size, it gives other values at another",
            hint="export it with dynamic height and width",
        )


def _probe_range(model: Any, path: Path, images: Sequence[Pair], multiple: int) -> float:
    found = {1.0: 0.0, 255.0: 0.0}
    for image_range in found:
        scores = []
        for _, lr_HWC, hr_HWC in images[:2]:
            height, width = (min(96, s) // multiple * multiple for s in lr_HWC.shape[:2])
            lr = lr_HWC[:height, :width].transpose(2, 0, 1)[None].astype(np.float32)
            sr = _run(model, lr * np.float32(image_range / 255))[0].transpose(1, 2, 0)
            pixels = np.rint(np.clip(sr * (255 / image_range), 0, 255)).astype(np.uint8)
            scale = pixels.shape[0] // height
            truth = hr_HWC[: height * scale, : width * scale]
            scores.append(psnr_y(pixels, truth, border=scale))
        found[image_range] = float(np.mean(scores))
    best = max(found, key=lambda r: found[r])
    figures = ", ".join(f"{r:g}: {db:.2f} dB" for r, db in found.items())
    if found[best] < _LEAST_PROBE_DB:
        raise UnsupportedError(
            f"{path}: no image range makes sense of it ({figures})",
            hint="--set adopt.image_range=255, or check that it takes RGB",
        )
    log.info("image range %g by a probe on images (%s)", best, figures)
    return best


def _convert_range(model: Any, image_range: float) -> None:
    """Multiply at the input and divide at the output, so that images are in [0, 1]."""
    import onnx
    from onnx import helper

    if image_range == 1:
        return
    graph = model.graph
    image, result = _inputs(model)[0].name, graph.output[0].name
    for name, value in (("to_range", image_range), ("from_range", 1 / image_range)):
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
    for node in graph.node:
        for at, used in enumerate(node.input):
            if used == image:
                node.input[at] = f"{image}_in_range"
        for at, used in enumerate([*node.output]):
            if used == result:
                node.output[at] = f"{result}_in_range"
        for at, used in enumerate([*node.input]):
            if used == result:
                node.input[at] = f"{result}_in_range"
    first = helper.make_node("Mul", [image, "to_range"], [f"{image}_in_range"], "to_range_mul")
    last = helper.make_node("Mul", [f"{result}_in_range", "from_range"], [result], "from_range_mul")
    graph.node.insert(0, first)
    graph.node.append(last)


def _set_metadata(model: Any, *, scale: int, multiple: int) -> None:
    """Set the metadata of our own exports."""
    facts = {"colour": "RGB", "range": "0..1", "producer": PRODUCER}
    facts |= {"scale": str(scale), "border": str(scale), "multiple": str(multiple)}
    kept = {p.key: p.value for p in model.metadata_props}
    del model.metadata_props[:]
    for key, value in sorted(({"family": "onnx"} | kept | facts).items()):
        model.metadata_props.add(key=key, value=value)
