"""INT8 for LiteRT: S8 activations, S8 weights per output channel, as its specification says.

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
ai-edge-quantizer knows no INT8 of pixel shuffle, leaky ReLU and clipping, and takes no learned
scales (docs/decisions/0032-litert.md).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mipkd.core.errors import StageError
from mipkd.core.records import QuantParams, QuantScheme
from targets._litert.net import Array, Edge, Grid, Net, Op
from targets._litert.passes import split_slopes
from targets._litert.ranges import (
    CLIPPED,
    CLIPS,
    COMPUTES,
    Group,
    clip_bounds,
    follows,
    group,
    measure_ranges,
    moves,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from targets.base import BuildRequest

MOST = 127  # the integer that a channel's largest weight becomes
PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
_MIDDLE = 128  # INT8 counts from -128, records from 0
_FINE_BIAS = 2.0**24  # steps of a bias at least: it is an INT32 on the grid of the products


@dataclass(frozen=True)
class Int8:
    """A float graph and its ranges, ready to be quantised with any operations left float."""

    net: Net
    groups: dict[str, Group]

    @classmethod
    def of(
        cls, net: Net, ranges: dict[str, tuple[float, float]], scheme: QuantScheme | None
    ) -> Int8:
        """With the grids of `scheme` where they were learned."""
        made = cls(net, group(net, ranges))
        if scheme:
            made._learn(scheme)
        return made

    def operations(self) -> list[Op]:
        """What INT8 can compute, in order."""
        return [op for op in self.net.ops if _has_int8(op)]

    def quantized(self, floats: Collection[str]) -> Net:
        """The graph with all in INT8 but for the operations called `floats`.

        Raises:
            StageError: there is no such operation in INT8.
        """
        if lost := set(floats) - {op.name for op in self.operations()}:
            raise StageError(f"int8: no operation {', '.join(sorted(lost))} to be left float")
        inside = self._inside(floats)
        net = self.net.copy()
        _drop_clips(net, inside, self.groups)
        _convert_between(net, inside)
        for op in net.ops:
            if _key(op) in inside:
                self._quantize_constants(net, op)
        for name in [n for op in net.ops for n in _rounded(op, inside) if n not in net.constants]:
            net.kinds[name] = "INT8"
            net.grids[name] = _grid_of(self.groups[_origin(name)])
        return net

    def scheme(self, floats: Sequence[str]) -> QuantScheme:
        """All that is rounded when `floats` stay float."""
        inside = self._inside(floats)
        found: dict[int, tuple[Group, list[Edge]]] = {}
        for name in self.net.features():
            if edges := self._edges_rounded(name, inside):
                found.setdefault(id(self.groups[name]), (self.groups[name], []))[1].extend(edges)
        grids = []
        for one, edges in found.values():
            if one.fixed is None:  # others are not to be learned
                scale, zero = one.scale_and_zero
                grids.append(QuantParams(tuple(dict.fromkeys(edges)), scale, zero))
        weights = [
            (op.name, float(MOST))
            for op in self.operations()
            if op.code in PRODUCTS and op.name not in floats
        ]
        return QuantScheme(tuple(grids), tuple(weights), tuple(floats))

    def _learn(self, scheme: QuantScheme) -> None:
        """Take over the learned scales.

        Raises:
            StageError: none was learned for a tensor that is rounded.
        """
        learned = {edge: grid for grid in scheme.grids for edge in grid.readers}
        for grid in self.scheme(scheme.floats).grids:
            if grid.readers[0] not in learned:
                raise StageError(f"int8: no grid was learned for what {grid.readers} read")
            new = learned[grid.readers[0]]
            for one in self._groups_read_by(grid.readers[0]):
                one.least = -new.zero_point * new.scale
                one.most = (255 - new.zero_point) * new.scale

    def _groups_read_by(self, edge: Edge) -> Iterable[Group]:
        if not edge[0]:
            return [self.groups[self.net.result]]
        return [self.groups[n] for op, i, n in self.net.reads() if op.edges[i] == edge]

    def _inside(self, floats: Collection[str]) -> set[str]:
        """What computes in INT8, by what it makes."""
        inside, makers, readers = set[str](), self.net.maker(), self.net.readers()

        def wants(op: Op) -> bool:
            if _has_int8(op):
                return op.name not in floats
            users = [user for name in op.outputs for user, _ in readers.get(name, [])]
            return moves(op) and bool(users) and all(map(wants, users)) and not is_result(op)

        def is_result(op: Op) -> bool:
            return self.net.result in op.outputs

        for op in self.net.ops:
            read = [makers.get(n) for n in op.inputs if n not in self.net.constants]
            whole = all(one is not None and _key(one) in inside for one in read)
            if wants(op) or ((moves(op) or follows(op)) and whole):
                inside.add(_key(op))
        return inside

    def _edges_rounded(self, name: str, inside: set[str]) -> list[Edge]:
        """Who reads a tensor rounded."""
        maker, readers = self.net.maker().get(name), self.net.readers().get(name, [])
        rounded = maker is not None and _key(maker) in inside
        edges = [op.edges[i] for op, i in readers if rounded or _key(op) in inside]
        if rounded and name == self.net.result:
            edges.append(("", 0))
        return [edge for edge in edges if edge is not None]

    def _quantize_constants(self, net: Net, op: Op) -> None:
        """Put an operator's weights, bias and other constants on grids, in place."""
        if op.code in PRODUCTS:
            self._quantize_weights(net, op)
            return
        for index, name in enumerate(op.inputs):
            if name in net.constants and net.constants[name].dtype == np.float32:
                values = net.constants[name]
                grid = _grid_of(Group([], float(values.min()), float(values.max())))
                if moves(op):
                    grid = _grid_of(self.groups[_origin(op.outputs[0])])
                op.inputs[index] = _add(net, name, _rounded_to(values, grid), grid)

    def _quantize_weights(self, net: Net, op: Op) -> None:
        at = 2 if op.code == "TRANSPOSE_CONV" else 0
        bias_at = 3 if op.code == "TRANSPOSE_CONV" else 2
        step = self.groups[_origin(op.inputs[at])].scale_and_zero[0]
        values, bias = net.constants[op.inputs[1]], net.constants[op.inputs[bias_at]]
        axis = 3 if op.code == "DEPTHWISE_CONV_2D" else 0
        others = tuple(i for i in range(4) if i != axis)
        largest = np.abs(values).max(axis=others)
        # A channel of hardly any weights still has a bias, which is counted in their steps.
        scale = np.maximum(largest / MOST, np.abs(bias) / (step * _FINE_BIAS))
        scale = np.maximum(scale, 1e-12).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(4)]
        whole = np.rint(values / scale.reshape(shape)).clip(-MOST, MOST).astype(np.int8)
        op.inputs[1] = _add(net, op.inputs[1], whole, Grid(scale, 0, axis))
        product = (scale.astype(np.float64) * step).astype(np.float32)
        counted = np.rint(bias / product.astype(np.float64)).astype(np.int32)
        op.inputs[bias_at] = _add(net, op.inputs[bias_at], counted, Grid(product, 0))


def _has_int8(op: Op) -> bool:
    return op.code in COMPUTES and op.whole and not op.role


def _key(op: Op) -> str:
    return op.outputs[0]


def _rounded(op: Op, inside: set[str]) -> list[str]:
    """The tensors of integers around an operator."""
    if _key(op) in inside:
        return [*op.inputs, *op.outputs]
    return list(op.outputs) if op.code == "QUANTIZE" else []


_ROUNDED, _RAW = " (int8)", " (float)"  # behind the name of a tensor that has another of its own


def _origin(name: str) -> str:
    return name.removesuffix(_ROUNDED).removesuffix(_RAW)


def _grid_of(one: Group) -> Grid:
    scale, zero = one.scale_and_zero
    return Grid(np.array([scale], np.float32), zero - _MIDDLE)


def _rounded_to(values: Array, grid: Grid) -> Array:
    whole = np.rint(values / grid.scale[0]) + grid.zero_point
    return np.asarray(whole.clip(-_MIDDLE, _MIDDLE - 1), np.int8)


def _add(net: Net, name: str, values: Array, grid: Grid) -> str:
    made = net.new(f"{name}_int8")
    net.constants[made], net.grids[made] = values, grid
    return made


def _drop_clips(net: Net, inside: set[str], groups: dict[str, Group]) -> None:
    """Leave out what clips to where the grid ends anyway, in place."""
    for op in list(net.ops):
        if op.code not in CLIPS or _key(op) not in inside:
            continue
        least, most = clip_bounds(net, op)
        scale, zero = groups[_key(op)].scale_and_zero
        ends = -zero * scale > least - scale / 2 and (255 - zero) * scale < most + scale / 2
        maker, made = net.maker().get(op.inputs[0]), op.outputs[0]
        if not ends or maker is None or len(net.readers()[op.inputs[0]]) > 1:
            continue
        if _key(maker) in inside:
            inside.discard(_key(maker))
            maker.outputs = op.outputs
            net.ops.remove(op)
        elif made != net.result:  # what rounds it clips it
            for reader, index in net.readers()[made]:
                reader.inputs[index] = op.inputs[0]
            net.ops.remove(op)


def _convert_between(net: Net, inside: set[str]) -> None:
    """Put QUANTIZE and DEQUANTIZE between operators of the two kinds, in place."""
    rounded = {name for op in net.ops if _key(op) in inside for name in op.outputs}
    ops: list[Op] = []
    made: set[str] = set()

    def convert(name: str, code: str, mark: str, reader: str) -> str:
        turned = f"{name}{mark}"
        if turned not in made:
            made.add(turned)
            ops.append(Op(code, reader, [name], [turned], edges=[None]))
        return turned

    for op in net.ops:
        for index, name in enumerate(op.inputs):
            if not name or name in net.constants:
                continue
            if _key(op) in inside and name not in rounded:
                op.inputs[index] = convert(name, "QUANTIZE", _ROUNDED, op.name)
            elif _key(op) not in inside and name in rounded:
                op.inputs[index] = convert(name, "DEQUANTIZE", _RAW, op.name)
        ops.append(op)
    net.ops = ops
    if net.result in rounded:
        net.result = convert(net.result, "DEQUANTIZE", _RAW, "")


def quantize_graph(request: BuildRequest, net: Net) -> tuple[Net, tuple[str, ...]]:
    """The request's graph in INT8 by its plan, else by a fixed recipe; and notes.

    The recipe leaves first and last convolution and skip additions float: of EDSR f32b5 that halves
    what is lost, for a tenth of the time.
    """
    from calibration.sensitive_layers import refuse_nothing_quantized, sensitive_layers_in_file

    assert request.patches is not None, "accepted with them"
    scheme, plan = request.scheme, request.plan
    split_slopes(net)
    ranges = measure_ranges(net, request.patches, plan.ranges if plan else CLIPPED)
    int8 = Int8.of(net, ranges, scheme)
    known = {op.name for op in int8.operations()}
    if plan:
        floats = {layer.name for layer in plan.floats} | {*(scheme.floats if scheme else ())}
        note = f"{plan.counted} stay FP32"
    else:
        found = sensitive_layers_in_file(request.graph.file)
        floats = set(found.parts) & known
        note = found.note_on_floats("FP32")
    left = [op for op in int8.operations() if op.name not in floats]
    refuse_nothing_quantized("Conv" for op in left if op.code in PRODUCTS)
    return int8.quantized(floats), (note,)
