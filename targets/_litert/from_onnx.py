"""An ONNX graph as a LiteRT graph: NCHW becomes NHWC, and nothing is transposed in between.

Shapes: N batch, H W low-res size, C channels; NCHW in ONNX, NHWC here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mipkd.core.errors import UnsupportedError
from targets._litert.net import Array, Edge, Net, Op
from targets._litert.passes import fuse_activations, order_for_shuffle
from targets._litert.resize import read_sizes

AXES = {0: 0, 1: 3, 2: 1, 3: 2}  # where an axis of NCHW lies in NHWC


def convert(file: Path, multiple: int) -> Net:
    """The graph of an ONNX file; images' sides are multiples of `multiple`.

    Raises:
        UnsupportedError: names the operators that have no counterpart here; it is in INT8 already.
    """
    import onnx

    from targets._litert.operators import RULES
    from targets._onnx.unquantize import refuse_quantized

    model = onnx.load(file)
    refuse_quantized(model)
    builder = Builder(model, read_sizes(model, multiple))
    nodes = builder.live_nodes()
    _refuse_unknown(nodes, RULES)
    for node in nodes:
        RULES[node.op_type](builder, node)
    builder.net.result = builder.tensor(model.graph.output[0].name)
    order_for_shuffle(builder.net, builder.by_channel)
    fuse_activations(builder.net)
    return builder.net


def refuse(node: Any, what: str = "") -> UnsupportedError:
    """Why a node cannot be converted, to be raised."""
    name = f"{node.op_type} ({what})" if what else node.op_type
    return UnsupportedError(
        f"litert: no counterpart of {name}, which is {node.name or node.output[0]} of the graph",
        hint="take another target for this net: --target",
    )


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    from onnx import helper

    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def follow_layout(builder: Builder, node: Any) -> None:
    """What is made of tensors with channels last has them there too."""
    read = [name for name in node.input if name in builder.last]
    features = [name for name in node.input if name and name not in builder.values]
    if read and len(read) < len(features):
        raise refuse(node, "of tensors in two layouts")
    if read:
        builder.last.add(node.output[0])


class Builder:
    """The graph so far, and what became of each tensor of the ONNX graph."""

    def __init__(self, model: Any, sizes: dict[str, Any]) -> None:
        from onnx import numpy_helper, shape_inference

        graph = shape_inference.infer_shapes(model).graph
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._nodes, self._result = list(graph.node), graph.output[0].name
        self.values: dict[str, Array] = held
        self._fold_constants()
        image = next(one.name for one in graph.input if one.name not in held)
        self.net = Net(image, "")
        self.sizes = sizes  # of what is resized, by the output's name
        self.last: set[str] = set()  # tensors that have their channels last in ONNX too
        self.by_channel: set[str] = set()  # what pixel shuffles of ONNX's order make
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        self._real = {image: image}  # name here by the name in ONNX
        self.net.channels[image] = self.channels(image)
        self._edges: dict[str, Edge] = {}  # what reads a tensor first that only has another name

    def live_nodes(self) -> list[Any]:
        """The nodes that make the result out of the image, but for computed sizes."""
        wanted, found = {self._result}, []
        for node in reversed(self._nodes):
            if wanted & set(node.output):
                found.append(node)
                read = node.input[:1] if node.op_type in ("Resize", "Upsample") else node.input
                wanted |= {name for name in read if name not in self.values}
        return found[::-1]

    def channels(self, name: str) -> int:
        """Of a tensor of the ONNX graph; 0 where it is not known.

        Raises:
            UnsupportedError: it has not four dimensions.
        """
        shape = self._shapes.get(name, [])
        if len(shape) not in (0, 4):
            raise UnsupportedError(
                f"litert: {name} has {len(shape)} dimensions, which phones refuse",
                hint="take another target for this net: --target",
            )
        return shape[3 if name in self.last else 1] if shape else 0

    def tensor(self, name: str) -> str:
        """The name here of a tensor that is no constant."""
        return str(self._real[name])

    def add(self, code: str, node: Any, inputs: list[str], output: str = "", **options: Any) -> str:
        """Add an operator of a node; `inputs` are names in ONNX or here; gives its output's name.

        Without `output` it makes what the node makes.
        """
        made = self.net.new(output or node.output[0])
        edges = [self._edge(node, name) for name in inputs]
        real = [self._real.get(name, name) for name in inputs]
        self.net.ops.append(Op(code, node.name, real, [made], options, edges))
        self.net.channels[made] = self.net.channels.get(real[0], 0)
        if not output:
            self.name(node.output[0], made)
        return made

    def name(self, output: str, made: str) -> None:
        """Let `made` be what the ONNX graph calls `output`."""
        self._real[output] = made
        if count := self.channels(output):
            self.net.channels[made] = count

    def mark_parts(self, node: Any) -> None:
        """Say of a node's operators that none of them alone is the node."""
        for op in self.net.ops:
            op.whole = op.whole and op.name != node.name

    def alias(self, node: Any) -> None:
        """What the node makes is what it reads, by another name."""
        source, made = node.input[0], node.output[0]
        self._real[made] = self._real[source]
        self._edges[made] = self._edges.get(source, (node.name, 0))

    def constant(self, name: str, values: Any, kind: type = np.float32) -> str:
        """Add a constant; gives its name."""
        found = self.net.new(name)
        self.net.constants[found] = np.asarray(values, kind)
        return found

    def operand(self, node: Any, index: int) -> str:
        """An input of a pointwise node: a tensor's name, or that of a constant for NHWC."""
        name = node.input[index]
        if name not in self.values:
            return str(name)
        value, others = self.values[name], [n for n in node.input if n not in self.values]
        if value.ndim > 4:
            raise refuse(node, f"{value.ndim} dimensions")
        whole = value.reshape((1,) * (4 - value.ndim) + value.shape)
        turned = whole if others and others[0] in self.last else whole.transpose(0, 2, 3, 1)
        return self.constant(name, turned)

    def _edge(self, node: Any, name: str) -> Edge | None:
        if name in self._edges:
            return self._edges[name]
        return (node.name, list(node.input).index(name)) if name in node.input else None

    def _fold_constants(self) -> None:
        """Compute what depends on no image."""
        from onnx.reference import ReferenceEvaluator

        left = []
        for node in self._nodes:
            if all(name in self.values or not name for name in node.input) and node.op_type not in (
                "RandomNormal",
                "RandomUniform",
            ):
                made = ReferenceEvaluator(node).run(
                    None, {name: self.values[name] for name in node.input if name}
                )
                self.values.update(zip(node.output, map(np.asarray, made), strict=True))
            else:
                left.append(node)
        self._nodes = left


def _refuse_unknown(nodes: list[Any], known: dict[str, Any]) -> None:
    lacking = sorted({node.op_type for node in nodes} - set(known))
    if lacking:
        raise UnsupportedError(
            f"litert: the graph holds {', '.join(lacking)}, which phones refuse or this program "
            f"does not convert; known: {', '.join(sorted(known))}",
            hint="take another target for this net: --target",
        )
