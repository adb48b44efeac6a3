"""The receptive field of an ONNX graph: the margin with which a tile's pixels are exact.

The graph is run at three sizes to learn the shapes in it; from there every operator on the way from
the image tells what it reads (`operator_reach`). What is not known makes tiles inexact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mipkd.export.image_axes import Along, Axes, InexactError, Operand, Operation, Shapes
from mipkd.export.onnx import open_session
from mipkd.export.operator_reach import MANY_FROM_IMAGE, RULES, SIZES_AT, find_axes

_DEFAULT = 32  # LR pixels, if no margin makes tiles exact
_LEAST = 24  # LR pixels a side of what the graph is run on
# Height and width in multiples above the least: even and odd ones, no two alike.
_PROBES = ((1, 4), (2, 6), (6, 3))
_SHAPE = "/shape of the receptive field"
_MANY_RESULTS = ("Split", "Dropout", "BatchNormalization")
_RANDOM = ("Bernoulli", "Multinomial", "Random")


@dataclass(frozen=True)
class ReceptiveField:
    """Its radius in LR pixels, and why tiles with that margin are inexact; "" if they are exact."""

    radius: int
    inexact_because: str = ""


def find_receptive_field(file: Path, multiple: int = 1) -> ReceptiveField:
    """The receptive field of an ONNX graph with one image in and one out, NCHW.

    Heights and widths of the whole and of tiles are of `multiple`, and so is where tiles begin.
    """
    try:
        return ReceptiveField(_Graph(file, multiple).radius())
    except InexactError as why:
        return ReceptiveField(_DEFAULT, str(why))


class _Graph:
    """A graph, what comes from its image, and what was measured."""

    def __init__(self, file: Path, multiple: int) -> None:
        self._model, self._multiple = _load(file), multiple
        graph = self._model.graph
        self._constants = {t.name: _array(t) for t in graph.initializer}
        self._image = next(i.name for i in graph.input if i.name not in self._constants)
        self._opset = next(
            (o.version for o in self._model.opset_import if o.domain in ("", "ai.onnx")), 1
        )
        self._nodes = list(_from_image(graph, self._image))
        least = max(1, _LEAST // multiple)
        self._sizes = [tuple((least + n) * multiple for n in probe) for probe in _PROBES]
        self._runs = [self._measure(size) for size in self._sizes]

    def radius(self) -> int:
        """In LR pixels.

        Raises:
            InexactError: no margin suffices.
        """
        found: dict[str, Axes] = {self._image: (None, None, Along(0), Along(1))}
        for node in self._nodes:
            operation = self._describe(node, found)
            axes = find_axes(operation)
            for name in filter(None, node.output):
                found[name] = self._check(operation, axes, self._shapes(name))
        return self._margin(found[self._model.graph.output[0].name])

    def _margin(self, axes: Axes) -> int:
        sides = [axis.side if axis else None for axis in axes]
        steps = {axis.step for axis in axes if axis}
        if sides != [None, None, 0, 1] or len(steps) != 1 or (step := steps.pop()).numerator != 1:
            raise InexactError("the result is not laid out as the image is")
        # An LR pixel's results begin at it and end `1 - step` after it.
        most = max(max(axis.before, axis.after + 1 - step) for axis in axes if axis)
        return math.floor(most)

    def _check(self, operation: Operation, axes: Axes, shapes: Shapes) -> Axes:
        """The axes, with lengths that follow the image's; padding counts as what lies outside."""
        if len(axes) != len(shapes[0]):
            operation.fail("its result has another rank than is known")
        return tuple(
            self._follow(operation, axis, lengths)
            for axis, lengths in zip(axes, zip(*shapes, strict=True), strict=True)
        )

    def _follow(
        self, operation: Operation, axis: Along | None, lengths: tuple[int, ...]
    ) -> Along | None:
        if axis is None:
            if len(set(lengths)) > 1:
                operation.fail("it makes channels of places")
            return None
        if self._multiple % axis.step.numerator:
            operation.fail("a coarser grid, which depends on where a tile begins")
        longer = {
            length - size[axis.side] / axis.step
            for length, size in zip(lengths, self._sizes, strict=True)
        }
        if len(longer) > 1:
            operation.fail("the length of its result does not follow the image's")
        # Padding stands where a tile is cut: the first positions outside must read outside.
        missing = -longer.pop() * axis.step
        before, after = max(axis.before, 1 - axis.step), max(axis.after, missing)
        return replace(axis, before=before, after=after)

    def _describe(self, node: Any, found: dict[str, Axes]) -> Operation:
        from onnx import helper

        facts = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        operation = Operation(node.op_type, facts, (), self._shapes(node.output[0]), self._opset)
        many = node.op_type in MANY_FROM_IMAGE
        if any(name in found for name in node.input[1:]) and not many:
            operation.fail("what it does depends on the image's pixels")
        if len([*filter(None, node.output)]) > 1 and node.op_type not in _MANY_RESULTS:
            operation.fail("its second result is not known")
        inputs = tuple(
            self._operand(operation, name, at, found) if name else None
            for at, name in enumerate(node.input)
        )
        return replace(operation, inputs=inputs)

    def _operand(self, operation: Operation, name: str, at: int, found: dict[str, Axes]) -> Operand:
        if name in found:
            return Operand(found[name], self._shapes(name), from_image=True)
        values = [run[name] for run in self._runs]
        first = values[0]
        if all(np.array_equal(first, one, equal_nan=first.dtype.kind == "f") for one in values):
            return Operand((None,) * first.ndim, (first.shape,) * len(values), value=first)
        # One value everywhere, at any size: as a number.
        levels = {level for one in values for level in np.unique(one).tolist()}
        if len(levels) > 1 and at not in SIZES_AT.get(operation.kind, ()):
            operation.fail("it takes values that depend on the image's size")
        return Operand((), ((),) * len(values))

    def _shapes(self, name: str) -> Shapes:
        return tuple(tuple(run[name + _SHAPE].tolist()) for run in self._runs)

    def _measure(self, size: tuple[int, ...]) -> dict[str, Any]:
        """Shapes of what comes from the image, and values of what else these nodes read."""
        made = {name for node in self._nodes for name in node.output if name} | {self._image}
        read = {name for node in self._nodes for name in node.input if name} - made
        wanted = sorted(read - set(self._constants))
        lr_NCHW = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
        names = [*wanted, *(name + _SHAPE for name in sorted(made))]
        try:
            session = open_session(_telling_shapes(self._model, wanted, sorted(made)))
            found = session.run(names, {self._image: lr_NCHW})
        except Exception as error:  # onnxruntime has no public base class
            why = str(error).splitlines()[0]
            raise InexactError(f"it cannot be run at {size[1]}x{size[0]}: {why}") from error
        return {**self._constants, **dict(zip(names, found, strict=True))}


def _load(file: Path) -> Any:
    import onnx
    from onnx import inliner

    model = onnx.load(file)
    return inliner.inline_local_functions(model) if model.functions else model


def _array(tensor: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _from_image(graph: Any, image: str) -> Iterator[Any]:
    """The nodes on the way from the image's pixels to the result, in order.

    Raises:
        InexactError: one is unknown.
    """
    wanted = _nodes_of_result(graph)
    seen = {image}
    for node in wanted:
        if node.op_type.startswith(_RANDOM):
            raise InexactError(f"{node.op_type}: it is random")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InexactError(f"{node.op_type}: what it runs depends on values")
        if node.op_type in ("Shape", "Size") or not seen.intersection(node.input):
            continue
        if node.domain not in ("", "ai.onnx"):
            raise InexactError(f"{node.domain}.{node.op_type}: how far it looks is not known")
        if node.op_type not in RULES:
            raise InexactError(f"{node.op_type}: how far it looks is not known")
        seen.update(filter(None, node.output))
        yield node


def _nodes_of_result(graph: Any) -> list[Any]:
    """The nodes that the result depends on, in order."""
    needed, found = {graph.output[0].name}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _telling_shapes(model: Any, values: list[str], shaped: list[str]) -> bytes:
    """The model with other outputs: these values, and the shapes of these tensors."""
    from onnx import helper

    edited = type(model)()
    edited.CopyFrom(model)
    del edited.graph.output[:], edited.graph.value_info[:]
    for name in shaped:
        edited.graph.node.append(helper.make_node("Shape", [name], [name + _SHAPE]))
    for name in (*values, *(name + _SHAPE for name in shaped)):
        edited.graph.output.append(helper.make_empty_tensor_value_info(name))
    return bytes(edited.SerializeToString())
