"""Editing of OpenVINO graphs that NNCF has quantised: chosen operations go back to floats.

NNCF puts a FakeQuantize behind what makes a tensor and turns weights into INT8 constants. An
operation becomes float when it reads its inputs from before those FakeQuantize, and its weights
and bias from the model that was quantised. Nothing is calibrated again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mipkd.core.errors import StageError
from mipkd.core.records import QuantParams
from targets._openvino.constants import constant_of, is_constant
from targets._openvino.joins import restore_join

if TYPE_CHECKING:
    from pathlib import Path

_FAKE = "FakeQuantize"
_STEPS = 255  # of its grid
_FUSED = "/WithoutBiases"  # what the converter adds to the name of a convolution with a bias
_SOURCES = ("Constant", "Parameter", "Result", "Convert", "ShapeOf", _FAKE)
CONVOLUTIONS = ("Convolution", "GroupConvolution")
# They move or pick values and compute in whatever they are given: as float as their readers.
_FOLLOWERS = {
    "Concat",
    "DepthToSpace",
    "MaxPool",
    "Pad",
    "Relu",
    "ReduceMax",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "StridedSlice",
    "Transpose",
    "Unsqueeze",
    "VariadicSplit",
}


def is_quantized(model: Any) -> bool:
    """Whether a graph already has INT8 in it."""
    return any(op.get_type_name() == _FAKE for op in model.get_ops())


def operations(model: Any) -> list[Any]:
    """The operations of a quantised model that compute in INT8, in order."""
    found: list[Any] = []
    weights, rounded = (
        set[str](),
        set[str](),
    )  # names: to ask each anew takes longer than to compile
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name()
        sources = [op.input_value(i).get_node() for i in range(op.get_input_size())]
        named = [(one.get_type_name(), one.get_friendly_name()) for one in sources]
        reads_rounded = any(source in rounded for _, source in named)
        if _prepares_constants(named, weights):
            weights.add(name)
        elif kind == _FAKE or (kind in _FOLLOWERS and reads_rounded):
            rounded.add(name)
        elif kind not in (*_SOURCES, *_FOLLOWERS) and reads_rounded:
            found.append(op)
    return found


def name_of(op: Any) -> str:
    """An operation's name in the ONNX file that the model was converted from."""
    return str(op.get_friendly_name()).removesuffix(_FUSED)


def name_as_in(model: Any, file: Path) -> None:
    """Give operations that the converter fused or renamed their names in the ONNX file.

    What has none there gets one that is the same each time: the converter numbers such operations
    by how many it has made in this process.
    """
    import onnx

    nodes = onnx.load(file, load_external_data=False).graph.node
    every = {node.name for node in nodes}
    maker = {tensor: node.name for node in nodes for tensor in node.output}
    for op in model.get_ordered_ops():
        if name_of(op) not in every and op.get_type_name() not in _SOURCES:
            made = [maker[t] for out in op.outputs() for t in out.get_names() if t in maker]
            op.set_friendly_name(made[0] if made else op.get_friendly_name())
    names = [node.name for node in nodes if node.op_type == "Conv"]
    ours = [op for op in model.get_ordered_ops() if op.get_type_name() in CONVOLUTIONS]
    known = {name_of(op) for op in ours}
    renamed = [op for op in ours if name_of(op) not in names]
    free = [name for name in names if name not in known]
    if len(renamed) == len(free):  # else the converter split or dropped some
        for op, name in zip(renamed, free, strict=True):
            op.set_friendly_name(f"{name}{_FUSED}")
    count: Counter[str] = Counter()
    for op in model.get_ordered_ops():
        if name_of(op) not in every and op.get_type_name() not in _SOURCES:
            count[op.get_type_name()] += 1
            op.set_friendly_name(f"{op.get_type_name()} {count[op.get_type_name()]}")


def restore_floats(quantized: Any, original: Any, names: Iterable[str]) -> Any:
    """A copy of `quantized` in which the operations called `names` are as in `original`.

    Raises:
        StageError: there is no such operation in INT8.
    """
    model, names = quantized.clone(), set(names)
    found = operations(model)
    if lost := names - {name_of(op) for op in found}:
        raise StageError(f"int8: no operation {', '.join(sorted(lost))} to be left float")
    floats = [op for op in found if name_of(op) in names]
    before = {op.get_friendly_name(): op for op in original.get_ops()}
    for op in floats:
        _restore(op, before)
    still = {op.get_friendly_name() for op in found} - {op.get_friendly_name() for op in floats}
    shapes = [op for op in model.get_ops() if op.get_type_name() == "ShapeOf"]
    for op in (*floats, *_followers_of_floats(model, still), *shapes):
        for entry in op.inputs():
            if fake := _quantizer(entry):
                entry.replace_source_output(fake.input_value(0))
    for op in floats:
        if op.get_type_name() == "Convolution":
            restore_join(op)
    model.validate_nodes_and_infer_types()
    return model


def factors(model: Any, file: Path) -> dict[str, float]:
    """How much larger a convolution's input is in an ONNX file than in the model made of it.

    Conversion moves a multiplication before a convolution into its weights.
    """
    import onnx

    graph = onnx.load(file).graph
    stored = {t.name: t for t in graph.initializer}
    weights = {n.name: stored.get(n.input[1]) for n in graph.node if n.op_type == "Conv"}
    found = {}
    for op in model.get_ordered_ops():
        theirs = weights.get(name_of(op))
        if op.get_type_name() in CONVOLUTIONS and theirs is not None:
            ours = np.abs(constant_of(op.input_value(1).get_node()).get_node().data).sum()
            found[name_of(op)] = float(ours / np.abs(onnx.numpy_helper.to_array(theirs)).sum())
    return found


def read_grids(model: Any, factors: Mapping[str, float]) -> tuple[QuantParams, ...]:
    """Scale and zero point of each rounded feature map, in the range it has in the ONNX file."""
    found = []
    for op in _roundings(model):
        low, high = (float(_values(op, index).item()) for index in (1, 2))
        scale = (high - low) / _STEPS
        readers = _readers(op)
        found.append(QuantParams(readers, scale * _factor(readers, factors), round(-low / scale)))
    return tuple(found)


def with_exact_image(model: Any) -> Any:
    """A quantised model that rounds the image, in [0, 1], to the 256 values that it has anyway.

    Behind a padding, where there is one: OpenVINO pads in INT8 with nothing but zeros.
    """
    image = model.inputs[0].get_node()
    for op in _roundings(model):
        if op.input_value(0).get_node() != image:
            continue
        _set_ends(op, 0.0, 1.0)
        users = _users(op)
        if [user.get_type_name() for user in users] == ["Pad"]:
            (pad,) = users
            readers = list(pad.output(0).get_target_inputs())
            pad.input(0).replace_source_output(image.output(0))
            op.input(0).replace_source_output(pad.output(0))
            for entry in readers:
                entry.replace_source_output(op.output(0))
    model.validate_nodes_and_infer_types()
    return model


def with_grids(model: Any, wanted: Iterable[QuantParams], factors: Mapping[str, float]) -> Any:
    """A copy of a quantised model that rounds feature maps to other grids.

    NNCF may round once what they round apart: where it puts a rounding depends on the weights.

    Raises:
        StageError: none is wanted for a map that is rounded.
    """
    model = model.clone()
    grids = {reader: grid for grid in wanted for reader in grid.readers}
    for op in _roundings(model):
        if unknown := [reader for reader in _readers(op) if reader not in grids]:
            raise StageError(f"int8: no grid was learned for what {unknown} read")
        for apart in _split(op, [grids[reader].readers for reader in _readers(op)]):
            grid = grids[_readers(apart)[0]]
            scale = grid.scale / _factor(grid.readers, factors)
            _set_ends(apart, -grid.zero_point * scale, (_STEPS - grid.zero_point) * scale)
    model.validate_nodes_and_infer_types()
    return model


def _split(op: Any, groups: Sequence[Sequence[tuple[str, int]]]) -> list[Any]:
    """A rounding, and a copy of it for each further group of those that read it."""
    from openvino import opset13

    _, *others = dict.fromkeys(map(tuple, groups))
    found = [op]
    for group in others:
        copy = opset13.fake_quantize(*op.input_values(), op.get_attributes()["levels"])
        copy.set_friendly_name(f"{op.get_friendly_name()}/{len(found)}")
        for entry in _entries(op):
            if _named(entry) in group:
                entry.replace_source_output(copy.output(0))
        found.append(copy)
    return found


def weights(model: Any, original: Any) -> tuple[tuple[str, float], ...]:
    """Convolutions in INT8, and how many steps of its scale a channel's largest weight has.

    NNCF gives 127, or 63.5 where it keeps to 7 bits.
    """
    before = {op.get_friendly_name(): op for op in original.get_ops()}
    found = []
    for op in operations(model):
        if op.get_type_name() in CONVOLUTIONS:
            old = before[op.get_friendly_name()].input_value(1).get_node()
            largest = np.abs(constant_of(old).get_node().data).max(axis=(-3, -2, -1)).ravel()
            scale = np.abs(op.input_value(1).get_node().input_value(1).get_node().data).ravel()
            found.append((name_of(op), round(2 * float(np.median(largest / scale))) / 2))
    return tuple(found)


def _factor(readers: Sequence[tuple[str, int]], factors: Mapping[str, float]) -> float:
    return next((factors[name] for name, _ in readers if name in factors), 1.0)


def _roundings(model: Any) -> list[Any]:
    ops = model.get_ordered_ops()
    return [op for op in ops if op.get_type_name() == _FAKE and not _is_weight(op)]


def _values(op: Any, index: int) -> Any:
    return op.input_value(index).get_node().data


def _set_ends(op: Any, low: float, high: float) -> None:
    from openvino import opset13

    for index, end in zip((1, 2, 3, 4), (low, high) * 2, strict=True):
        made = opset13.constant(np.full(_values(op, index).shape, end, np.float32))
        op.input(index).replace_source_output(made.output(0))


def _readers(op: Any) -> tuple[tuple[str, int], ...]:
    """The inputs that read its values, not only its shape."""
    read = [e for e in _entries(op) if e.get_node().get_type_name() != "ShapeOf"]
    return tuple(sorted(map(_named, read)))


def _entries(op: Any) -> list[Any]:
    return [entry for output in op.outputs() for entry in output.get_target_inputs()]


def _named(entry: Any) -> tuple[str, int]:
    return name_of(entry.get_node()), entry.get_index()


def _quantizer(entry: Any) -> Any:
    """The FakeQuantize of activations right before an input."""
    source = entry.get_source_output().get_node()
    return source if source.get_type_name() == _FAKE and not _is_weight(source) else None


def _is_weight(op: Any) -> bool:
    """Whether an operation only prepares constants: weights on their way from INT8."""
    return op.get_type_name() != "Constant" and is_constant(op)


def _prepares_constants(inputs: Sequence[tuple[str, str]], weights: Collection[str]) -> bool:
    """`_is_weight` by kinds and names of the inputs, `weights` among them."""
    return (
        bool(inputs)
        and all(kind == "Constant" or name in weights for kind, name in inputs[:1])
        and all(kind in ("Constant", "Convert") or name in weights for kind, name in inputs)
    )


def _restore(op: Any, before: dict[str, Any]) -> None:
    """Restore weights, and the bias that NNCF shifted to make up for their error."""
    old = before[op.get_friendly_name()]
    for index in range(op.get_input_size()):
        if _is_weight(op.input_value(index).get_node()):
            op.input(index).replace_source_output(constant_of(old.input_value(index).get_node()))
    for user in _users(op):
        if user.get_type_name() == "Add" and (bias := _constant_input(user)) is not None:
            kept = before[user.get_friendly_name()].input_value(bias).get_node()
            user.input(bias).replace_source_output(constant_of(kept))


def _constant_input(op: Any) -> int | None:
    kinds = [op.input_value(i).get_node().get_type_name() for i in range(op.get_input_size())]
    return kinds.index("Constant") if "Constant" in kinds else None


def _users(op: Any) -> list[Any]:
    return [entry.get_node() for entry in _entries(op)]


def _followers_of_floats(model: Any, still: set[str]) -> list[Any]:
    """The followers that no operation computing in INT8 reads any more."""
    freed: list[Any] = []
    needed: set[str] = set()
    for op in reversed(model.get_ordered_ops()):
        name = op.get_friendly_name()
        if op.get_type_name() not in _FOLLOWERS:
            continue
        users = _users(op)
        if any(
            u.get_friendly_name() in still | needed or u.get_type_name() == _FAKE for u in users
        ):
            needed.add(name)
        else:
            freed.append(op)
    return freed
