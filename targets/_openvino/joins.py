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

_SCALED = "/scaled_"  # in the name of a part's multiplication, before its place
_APART = 4.0  # how much wider the widest part is at least: two of the 8 bits
_FEATURES = (1, -1, 1, 1)  # of weights, per input channel


def with_one_range(model: Any, images: Iterable[Any]) -> Any:
    """A copy of a float model in which what one convolution reads joined has one range.

    `images` are NCHW batches that the ranges are measured on.
    """
    from openvino import opset13

    model = model.clone()
    joins = _joins(model)
    for (join, conv), ranges in zip(joins, _ranges(model, joins, images), strict=True):
        factors = 2.0 ** np.round(np.log2(np.maximum(ranges, np.finfo(np.float32).tiny)))
        factors[ranges == 0] = factors.max()
        if factors.max() < _APART * factors.min():
            continue
        for index, factor in enumerate(factors):
            inverse = opset13.constant(np.full((1, 1, 1, 1), 1 / factor, np.float32))
            scaled = opset13.multiply(join.input_value(index), inverse)
            scaled.set_friendly_name(f"{join.get_friendly_name()}{_SCALED}{index}")
            join.input(index).replace_source_output(scaled.output(0))
        _scale_weights(conv, _by_channel(join, factors))
    model.validate_nodes_and_infer_types()
    return model


def scaled_parts(model: Any) -> list[str]:
    """Names of the multiplications: they are not to be quantised themselves."""
    names = (op.get_friendly_name() for op in model.get_ops())
    return [name for name in names if _SCALED in name]


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


def constant_of(node: Any) -> Any:
    """A constant of the same values; what stands between it and the reader is computed now."""
    from openvino import opset13

    if node.get_type_name() == "Constant":
        return opset13.constant(node.data, dtype=node.data.dtype).output(0)
    import openvino

    folded = openvino.Model([node.output(0)], [], "weights")
    value = openvino.compile_model(folded, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})[0]
    return opset13.constant(value, dtype=value.dtype).output(0)


def _scaled_parts_of(conv: Any) -> list[Any]:
    """The multiplications before what a convolution reads joined, as floats; else none."""
    join = conv.input_value(0).get_node()
    parts = [join.input_value(i).get_node() for i in range(join.get_input_size())]
    return parts if parts and all(_SCALED in part.get_friendly_name() for part in parts) else []


def _inverse(part: Any) -> float:
    return float(part.input_value(1).get_node().data.item())


def _joins(model: Any) -> list[tuple[Any, Any]]:
    """Each Concat of channels that one convolution alone reads, and the convolution."""
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Concat" or op.get_attributes()["axis"] not in (1, -3):
            continue
        users = [e.get_node() for e in op.output(0).get_target_inputs()]
        known = all(_channels(op, i) for i in range(op.get_input_size()))
        if [user.get_type_name() for user in users] == ["Convolution"] and known:
            found.append((op, users[0]))
    return found


def _channels(join: Any, index: int) -> int:
    """Of a part; 0 where it is not known or the part is a constant."""
    shape = join.input_value(index).get_partial_shape()
    if join.input_value(index).get_node().get_type_name() == "Constant" or len(shape) != 4:
        return 0
    return shape[1].get_length() if shape[1].is_static else 0


def _ranges(model: Any, joins: list[tuple[Any, Any]], images: Iterable[Any]) -> list[Any]:
    """Largest absolute value of each part of each join."""
    if not joins:
        return []
    import openvino

    probe = model.clone()
    by_name = {op.get_friendly_name(): op for op in probe.get_ops()}
    copies = [by_name[join.get_friendly_name()] for join, _ in joins]
    parts = [[copy.input_value(i) for i in range(copy.get_input_size())] for copy in copies]
    parameters = probe.get_parameters()
    measured = openvino.Model([one for some in parts for one in some], parameters, "ranges")
    compiled = openvino.compile_model(measured, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    every = [[float(np.abs(part).max()) for part in compiled(image).values()] for image in images]
    largest, found, start = np.max(every, axis=0), [], 0
    for some in parts:
        found.append(largest[start : start + len(some)])
        start += len(some)
    return found


def _by_channel(join: Any, factors: Iterable[float]) -> Any:
    return np.concatenate([np.full(_channels(join, i), f) for i, f in enumerate(factors)])


def _scale_weights(conv: Any, factors_C: Any) -> None:
    from openvino import opset13

    weights = constant_of(conv.input_value(1).get_node()).get_node().data
    scaled = opset13.constant((weights * factors_C.reshape(_FEATURES)).astype(np.float32))
    conv.input(1).replace_source_output(scaled.output(0))
