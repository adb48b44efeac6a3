"""Adopt an ONNX graph that we did not make: one RGB image in, one larger image out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.images import ByteArray, psnr_y
from mipkd.core.records import Graph

log = logging.getLogger(__name__)

Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}
_LEAST_PROBE_DB = 20.0


def adopt(
    path: Path,
    *,
    scale: int | None,
    image_range: float | None,
    probe: Callable[[int], Sequence[Pair]],
    out: Path,
) -> Graph:
    """The graph with [0, 1] in and out and free height and width, as `out`/model.onnx.

    Scale is found by running it, the image range (1 or 255) by a probe, unless given.

    Raises:
        UsageError: not an ONNX file.
        UnsupportedError: not a float RGB image in NCHW in and out, quantised already, or a
            size or range that cannot be settled.
    """
    model = _read(path)
    _check(model, path)
    facts = {p.key: p.value for p in model.metadata_props}
    multiple = int(facts.get("multiple", 1))
    _free_sizes(model)
    found = _scale(model, path, multiple)
    if scale and scale != found:
        raise UsageError(f"{path}: its scale is x{found}, adopt.scale asks for x{scale}")
    if facts.get("range") != "0..1":
        _wrap(model, image_range or _probed_range(model, path, probe(found), multiple))
    file = out / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return Graph(
        file=file,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        role="student",
        scale=found,
        multiple=multiple,
        opset=model.opset_import[0].version,
        family=facts.get("family", "onnx"),
        licence=facts.get("licence", "unknown"),
    )


def _read(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: not an ONNX graph: {first}") from error
    return model


def _check(model: Any, path: Path) -> None:
    import onnx

    graph = model.graph
    constants = {t.name for t in graph.initializer}
    images = [i for i in graph.input if i.name not in constants]
    if len(images) != 1 or len(graph.output) != 1:
        raise UnsupportedError(
            f"{path}: {len(images)} inputs and {len(graph.output)} outputs",
            hint="known: one image in, one image out",
        )
    if quantized := _QUANTIZED & {node.op_type for node in graph.node}:
        raise UnsupportedError(
            f"{path}: already quantised ({', '.join(sorted(quantized))})",
            hint="give the FP32 graph; quantising is done here, per target",
        )
    tensor = images[0].type.tensor_type
    shape = [d.dim_value or d.dim_param for d in tensor.shape.dim]
    if len(shape) != 4 or shape[1] != 3 or tensor.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise UnsupportedError(
            f"{path}: its input is {kind} of shape {shape}",
            hint="known: float of shape [N, 3, H, W], RGB",
        )


def _free_sizes(model: Any) -> None:
    """Forget fixed heights and widths; running at two sizes tells if that was right."""
    constants = {t.name for t in model.graph.initializer}
    image = next(i for i in model.graph.input if i.name not in constants)
    for value, names in ((image, ("height", "width")), (model.graph.output[0], ("out_h", "out_w"))):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            dims[0].dim_value = 1
            for dim, name in zip(list(dims)[2:], names, strict=True):
                dim.dim_param = name
    del model.graph.value_info[:]


def _run(model: Any, lr_NCHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    (image,) = session.run(None, {session.get_inputs()[0].name: lr_NCHW})
    return np.asarray(image, dtype=np.float32)


def _scale(model: Any, path: Path, multiple: int) -> int:
    ratios = set()
    for height, width in ((3, 4), (5, 3)):
        size = (1, 3, 8 * multiple * height, 8 * multiple * width)
        try:
            shape = _run(model, np.zeros(size, np.float32)).shape
        except Exception as error:  # onnxruntime has no public base class
            raise UnsupportedError(
                f"{path}: does not run at {size[3]}x{size[2]}: {str(error).splitlines()[0]}",
                hint="export it with dynamic height and width",
            ) from error
        if len(shape) != 4 or shape[1] != 3:
            raise UnsupportedError(f"{path}: its output has shape {list(shape)}, not [N, 3, H, W]")
        ratios |= {shape[2] / size[2], shape[3] / size[3]}
    if len(ratios) != 1 or (ratio := ratios.pop()) != int(ratio) or ratio < 1:
        raise UnsupportedError(
            f"{path}: output sizes do not follow input sizes by a whole scale",
            hint="export it with dynamic height and width",
        )
    return int(ratio)


def _probed_range(model: Any, path: Path, images: Sequence[Pair], multiple: int) -> float:
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


def _wrap(model: Any, image_range: float) -> None:
    """Multiply at the input and divide at the output, so that images are in [0, 1]."""
    import onnx
    from onnx import helper

    if image_range == 1:
        return
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    image = next(i.name for i in graph.input if i.name not in constants)
    result = graph.output[0].name
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
