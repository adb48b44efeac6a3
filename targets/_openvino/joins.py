"""Maps that a Concat joins, brought to one range by powers of two before they are quantised.

NNCF gives all that a Concat joins the range of the widest map, and so does everything else that
reads one of them: SPAN x4 (48 channels) lost 2.8 dB by that and loses 0.4 without it. A
multiplication before each part, and the inverse in the weights of the convolution that reads the
Concat, change no float; OpenVINO computes the multiplication as a part of the rounding.

Shapes: N batch, C channels, H W size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from targets._openvino.constants import constant_of, is_constant

_APART = 4.0  # how much wider the widest part is at least: two of the 8 bits
_MOST = 2.0**8  # wider: what hardly differs from 0 in these images may in others
_FEATURES = (1, -1, 1, 1)  # of weights, per input channel


def with_one_range(model: Any, images: Iterable[Any]) -> Any:
    """A copy of a float model in which what one convolution reads joined has one range.

    `images` are NCHW batches that the ranges are measured on.
    """
    from openvino import opset13

    model = model.clone()
    joins = _joins(model)
    for (join, conv), ranges in zip(joins, _ranges(model, images), strict=True):
        if not np.isfinite(ranges).all() or ranges.max() < _APART * ranges.min():
            continue
        least = max(ranges.max() / _MOST, np.finfo(np.float32).tiny)
        factors = 2.0 ** np.round(np.log2(np.maximum(ranges, least)))
        for index, factor in enumerate(factors):
            inverse = opset13.constant(np.full((1, 1, 1, 1), 1 / factor, np.float32))
            scaled = opset13.multiply(join.input_value(index), inverse)
            scaled.set_friendly_name(_name(join, index))
            join.input(index).replace_source_output(scaled.output(0))
        _scale_weights(conv, _by_channel(join, factors))
    model.validate_nodes_and_infer_types()
    return model


def scaled_parts(model: Any) -> list[str]:
    """Names of the multiplications: they are not to be quantised themselves."""
    found = [part for conv in readers_of_scaled(model) for part in _scaled_parts_of(conv)]
    return [part.get_friendly_name() for part in found]


def readers_of_scaled(model: Any) -> list[Any]:
    """The convolutions that read such joins."""
    readers = (op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution")
    return [conv for conv in readers if _scaled_parts_of(conv)]


def restore_join(conv: Any) -> None:
    """Take the multiplications before a convolution out again: it is to be float."""
    if parts := _scaled_parts_of(conv):
        join = conv.input_value(0).get_node()
        _scale_weights(conv, _by_channel(join, [_inverse(part) for part in parts]))
        for entry, part in zip(join.inputs(), parts, strict=True):
            entry.replace_source_output(part.input_value(0))


def _name(join: Any, index: int) -> str:
    return f"{join.get_friendly_name()}/scaled_{index}"


def _scaled_parts_of(conv: Any) -> list[Any]:
    """The multiplications before what a convolution reads joined, as floats; else none."""
    join = conv.input_value(0).get_node()
    if join.get_type_name() != "Concat":
        return []
    parts = [join.input_value(i).get_node() for i in range(join.get_input_size())]
    ours = [
        part.get_type_name() == "Multiply" and part.get_friendly_name() == _name(join, index)
        for index, part in enumerate(parts)
    ]
    return parts if all(ours) else []


def _inverse(part: Any) -> float:
    return float(part.input_value(1).get_node().data.item())


def _joins(model: Any) -> list[tuple[Any, Any]]:
    """Each Concat of channels that one convolution alone reads, and the convolution.

    None of an image, whose 256 levels are kept as they are, and of constants.
    """
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Concat" or op.get_attributes()["axis"] not in (1, -3):
            continue
        readers = list(op.output(0).get_target_inputs())
        conv = readers[0].get_node() if len(readers) == 1 else op
        is_read = conv.get_type_name() == "Convolution" and readers[0].get_index() == 0
        if is_read and is_constant(conv.input_value(1).get_node()) and all(_parts(op)):
            found.append((op, conv))
    return found


def _parts(join: Any) -> list[int]:
    """Channels of each part; 0 where they are not known or it is not to be scaled."""
    found = []
    for index in range(join.get_input_size()):
        source = join.input_value(index)
        shape, kind = source.get_partial_shape(), source.get_node().get_type_name()
        is_float = source.get_element_type().get_type_name() == "f32"
        known = is_float and shape.rank.is_static and len(shape) == 4 and shape[1].is_static
        scales = known and kind not in ("Constant", "Parameter")
        found.append(shape[1].get_length() if scales else 0)
    return found


def _ranges(model: Any, images: Iterable[Any]) -> list[Any]:
    """Largest absolute value of each part of each join."""
    import openvino

    probe = model.clone()
    joins = [join for join, _ in _joins(probe)]
    if not joins:
        return []
    parts = [join.input_value(i) for join in joins for i in range(join.get_input_size())]
    measured = openvino.Model(parts, probe.get_parameters(), "ranges")
    compiled = openvino.compile_model(measured, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    every = [[float(np.abs(part).max()) for part in compiled(image).values()] for image in images]
    ends = np.cumsum([join.get_input_size() for join in joins])
    return np.split(np.max(every, axis=0), ends[:-1])


def _by_channel(join: Any, factors: Iterable[float]) -> Any:
    sizes = [join.input_value(i).get_partial_shape()[1] for i in range(join.get_input_size())]
    return np.concatenate([np.full(n.get_length(), f) for n, f in zip(sizes, factors, strict=True)])


def _scale_weights(conv: Any, factors_C: Any) -> None:
    from openvino import opset13

    weights = constant_of(conv.input_value(1).get_node()).get_node().data
    scaled = opset13.constant((weights * factors_C.reshape(_FEATURES)).astype(np.float32))
    conv.input(1).replace_source_output(scaled.output(0))
