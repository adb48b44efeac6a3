"""Adopt a foreign ONNX graph: one RGB image in, one larger image out.

It is rewritten for what comes after, and each rewriting is held against the file that came.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mipkd.core.apart import report
from mipkd.core.errors import UnsupportedError, UsageError
from mipkd.core.images import ByteArray
from mipkd.core.records import Graph
from mipkd.export.as_float32 import cast_to_float32, other_floats
from mipkd.export.foreign_graph import Original, Rewriting, inputs_of, name_nodes, open_original
from mipkd.export.image_range import Pair, probe_range, with_unit_range
from mipkd.export.onnx import PRODUCER
from mipkd.export.opset import LEAST, opset_of, raise_opset
from mipkd.export.parity import EXACT, ONE_LEVEL, FloatArray, Run

log = logging.getLogger(__name__)

_MULTIPLES = (1, 2, 4, 8, 16)  # of height and width; windows are 8 or 16
_OURS = {str(multiple) for multiple in range(1, 257)}  # what the metadata of our exports may say
_IR = 8  # the least of an adopted file: before 4, weights are listed among the inputs
_COMPARED = 3  # real images, at most `_SIDE` pixels a side
_SIDE = 64


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
        UnsupportedError: not a float RGB image in NCHW in and out, quantised already, a size or
            range that cannot be settled, or a rewriting that does not give the images it gave.
    """
    original = open_original(path)
    steps = _rewrite(original)
    model = steps[-1].model
    known, run = _told_multiple(model), [original.open_after(step) for step in steps][-1]
    found, multiple = _scale_and_multiple(run, path, (known,) if known else _MULTIPLES)
    if scale and scale != found:
        raise UsageError(f"{path}: its scale is x{found}, adopt.scale asks for x{scale}")
    noise = [np.random.default_rng(0).random((1, 3, *s), np.float32) for s in _sizes(multiple)]
    original.check(steps, noise)
    if any(original.size):
        _check_other_sizes(run, path, found, multiple)
    pairs = probe(found)
    if known:  # one of ours
        image_range = 1.0
    else:
        image_range = image_range or probe_range(model, path, pairs, multiple)
        steps.append(_bring_to_unit_range(steps[-1], image_range))
        _set_metadata(steps[-1].model, scale=found, multiple=multiple)
    photos = [_odd_part(lr, multiple) for _, lr, _ in pairs[:_COMPARED]]
    original.check(steps, [*noise, *photos], image_range)
    return _write(steps[-1].model, out / "model.onnx", found, multiple)


def _told_multiple(model: Any) -> int | None:
    """What the metadata of one of our own exports says that sizes must be a multiple of."""
    facts = {p.key: p.value for p in model.metadata_props}
    ours = facts.get("producer") == PRODUCER and facts.get("multiple") in _OURS
    return int(facts["multiple"]) if ours else None


def _bring_to_unit_range(before: Rewriting, image_range: float) -> Rewriting:
    step = f"bringing its range of {image_range:g} to 1"
    hint = "export it with images in [0, 1], or report the graph"
    model = with_unit_range(before.model, image_range)
    return Rewriting(step, model, before.bound, hint, in_unit_range=True)


def _rewrite(original: Original) -> list[Rewriting]:
    """The model after each step that it needs; the last has free sizes."""
    model, path, steps = original.model, original.path, list[Rewriting]()
    bound = EXACT
    if model.functions:
        model = _inline_functions(model, path)
        hint = "export it without functions of its own"
        steps.append(Rewriting("inlining its functions", model, bound, hint))
    if others := other_floats(model):
        kinds, bound = " and ".join(others), ONE_LEVEL
        log.info("%s: its %s is cast to float32", path.name, kinds)
        model = cast_to_float32(model)
        step = f"casting {kinds} to float32"
        steps.append(Rewriting(step, model, bound, "export it in float32"))
    if (opset := opset_of(model)) < LEAST:
        hint = f"export it with opset {LEAST} or later"
        try:
            model = raise_opset(model)
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            what = f"{path}: opset {opset} cannot be converted to {LEAST}: {why}"
            raise UnsupportedError(what, hint=hint) from error
        steps.append(Rewriting(f"raising opset {opset} to {LEAST}", model, bound, hint))
    hint = "export it with dynamic height and width"
    freed = _with_free_sizes(model)
    return [*steps, Rewriting("making height and width dynamic", freed, bound, hint)]


def _inline_functions(model: Any, path: Path) -> Any:
    """A copy without functions of its own: what rewrites and quantises looks into none.

    Raises:
        UnsupportedError: one stays.
    """
    from onnx import inliner

    hint = "export it without functions of its own"
    try:
        inlined = inliner.inline_local_functions(model, True)
    except Exception as error:  # the inliner raises RuntimeError and more, of no common base
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UnsupportedError(f"{path}: its functions stay: {why}", hint=hint) from error
    if names := [function.name for function in inlined.functions]:
        raise UnsupportedError(f"{path}: its functions stay: {', '.join(names)}", hint=hint)
    return inlined


def _with_free_sizes(model: Any) -> Any:
    """A copy with dynamic height and width, no weights among its inputs, and names for nodes."""
    copy = type(model)()
    copy.CopyFrom(model)
    image = type(model.graph.input[0])()
    image.CopyFrom(inputs_of(copy)[0])
    for value, names in ((image, ("height", "width")), (copy.graph.output[0], ("out_h", "out_w"))):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            dims[0].dim_value = 1
            for dim, name in zip(list(dims)[2:], names, strict=True):
                dim.dim_param = name
    del copy.graph.value_info[:]
    del copy.graph.input[:]
    copy.graph.input.append(image)
    copy.ir_version = max(copy.ir_version, _IR)
    name_nodes(copy.graph)
    return copy


def _scale_and_multiple(run: Run, path: Path, multiples: Sequence[int]) -> tuple[int, int]:
    """The integer scale, and the smallest multiple that heights and widths must be of."""
    why = ""
    for multiple in multiples:
        try:
            ratios = _ratios(run, _sizes(multiple))
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


def _sizes(multiple: int) -> tuple[tuple[int, int], ...]:
    """Heights and widths to try: odd numbers of the multiple."""
    least = max(3, 24 // multiple | 1) * multiple
    more, most = least + 2 * multiple, least + 4 * multiple
    return ((least, more), (most, least), (more, most))


def _ratios(run: Run, sizes: Sequence[tuple[int, int]]) -> set[float]:
    found: set[float] = set()
    for height, width in sizes:
        shape = run(np.zeros((1, 3, height, width), np.float32)).shape
        report()  # it can be run
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"its output has shape {list(shape)}, not [N, 3, H, W]")
        found |= {shape[2] / height, shape[3] / width}
    return found


def _check_other_sizes(run: Run, path: Path, scale: int, multiple: int) -> None:
    """Refuse a graph made for one size that computes something else at others.

    Away from the cut, a part of an image must give about the pixels of the whole.
    """
    side = max(48 // multiple, 2) * multiple
    rng = np.random.default_rng(0)
    whole = rng.random((1, 3, 2 * side, 2 * side), dtype=np.float32)
    inside = (..., slice(0, side * scale // 2), slice(0, side * scale // 2))
    of_whole = run(whole)[inside]
    of_part = run(np.ascontiguousarray(whole[..., :side, :side]))[inside]
    if not np.abs(of_whole - of_part).mean() <= 0.1 * of_whole.std():
        raise UnsupportedError(
            f"{path}: made for one size, it gives other values at another",
            hint="export it with dynamic height and width",
        )


def _odd_part(lr_HWC: ByteArray, multiple: int) -> FloatArray:
    """The corner of an image, in [0, 1], whose sides are odd numbers of the multiple."""
    height, width = (((min(_SIDE, s) // multiple - 1) | 1) * multiple for s in lr_HWC.shape[:2])
    part = lr_HWC[:height, :width].transpose(2, 0, 1)[None]
    return part.astype(np.float32) / np.float32(255)


def _set_metadata(model: Any, *, scale: int, multiple: int) -> None:
    """Set the metadata of our own exports."""
    facts = {"colour": "RGB", "range": "0..1", "producer": PRODUCER}
    facts |= {"scale": str(scale), "border": str(scale), "multiple": str(multiple)}
    kept = {p.key: p.value for p in model.metadata_props}
    del model.metadata_props[:]
    for key, value in sorted(({"family": "onnx"} | kept | facts).items()):
        model.metadata_props.add(key=key, value=value)


def _write(model: Any, file: Path, scale: int, multiple: int) -> Graph:
    facts = {p.key: p.value for p in model.metadata_props}
    content = model.SerializeToString()
    file.write_bytes(content)
    return Graph(
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        role="student",
        scale=scale,
        multiple=multiple,
        opset=opset_of(model),
        family=facts.get("family", "onnx"),
        licence=facts.get("licence", "unknown"),
    )
