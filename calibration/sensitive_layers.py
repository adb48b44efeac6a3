"""The layers that 8 bits harm most, found in the graph alone.

Measured on SR nets: 8 bits cost most at the first and the last convolution and where skips
are added, because these carry the image itself rather than a correction to it. Channel
attention's convolutions see one pixel, so that floats cost nothing, and scale a whole feature map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mipkd.core.errors import UnsupportedError

ATTENTION_NOTE = "window attention: 16 bits were faster than INT8 wherever we measured"
ATTENTION_FLOAT = "window attention and its MLPs stay float: INT8 holds convolutions only"

_POINTWISE = {"Sub", "Subtract", "Mul", "Multiply", "Add", "Div", "Divide", "Clip", "Clamp"}
_PASSED = _POINTWISE | {"DepthToSpace", "Identity", "Cast", "Convert", "Pad"}
_CONVOLUTIONS = {"Conv", "Convolution"}
PRODUCTS = _CONVOLUTIONS | {
    *("ConvTranspose", "Gemm", "MatMul"),
    *("GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"),
}
_POOLS = {"GlobalAveragePool", "ReduceMean", "ReduceSum", "Shape", "ShapeOf"}  # no image is left


@dataclass(frozen=True)
class Node:
    """An operation of a graph in any format; constants are not among its inputs."""

    name: str
    kind: str
    inputs: tuple[str, ...]  # tensors
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SensitiveLayers:
    """Names of the nodes that a quantiser treats differently."""

    head: tuple[str, ...]  # convolutions that see the image
    tail: tuple[str, ...]  # convolutions whose output is the image
    adds: tuple[str, ...]  # sums of two feature maps
    gates: tuple[str, ...]  # convolutions of pooled values: channel attention's
    attention: bool  # has matrix products of two feature maps
    ends: tuple[str, ...]  # pointwise operations between an image and the nearest convolution

    @property
    def parts(self) -> dict[str, str]:
        """The layers to leave float where nothing is measured, with what each of them is."""
        parts = dict.fromkeys(self.gates, "channel attention")
        parts |= dict.fromkeys(self.head, "first convolution")
        parts |= dict.fromkeys(self.tail, "last convolution")
        return parts | dict.fromkeys(self.adds, "skip addition")

    def note_on_floats(self, kind: str) -> str:
        """A note for the report: these layers stay in `kind`."""
        gates = f", {len(self.gates)} of channel attention" if self.gates else ""
        return (
            f"{len(self.head) + len(self.tail)} convolutions (first, last){gates} and "
            f"{len(self.adds)} skip additions stay {kind}"
        )


def refuse_nothing_quantized(kinds: Iterable[str]) -> None:
    """Refuse an INT8 model by the kinds of its operations in INT8: additions alone are none.

    Raises:
        UnsupportedError: no product would be computed in INT8.
    """
    if PRODUCTS.isdisjoint(kinds):
        raise UnsupportedError(
            "int8: nothing to quantise: no convolution or matrix product would compute in it",
            hint="build the model in a float precision: --precision",
        )


def find_sensitive_layers(nodes: Sequence[Node], *, image: str, result: str) -> SensitiveLayers:
    """The sensitive layers of a topologically ordered graph; `image` and `result` are tensors."""
    head, before = _walk_from(((n, n.inputs, n.outputs) for n in nodes), image)
    tail, after = _walk_from(((n, n.outputs, n.inputs) for n in reversed(nodes)), result)
    return SensitiveLayers(
        head=head,
        tail=tail,
        adds=tuple(n.name for n in nodes if n.kind == "Add" and len(n.inputs) == 2),
        gates=_convolutions_of_pooled(nodes),
        attention=any(n.kind == "MatMul" and len(n.inputs) == 2 for n in nodes),
        ends=tuple(dict.fromkeys((*before, *after))),
    )


def sensitive_layers_in_file(file: Path) -> SensitiveLayers:
    """The sensitive layers of an ONNX file."""
    import onnx

    return sensitive_layers_of(onnx.load(file, load_external_data=False))


def sensitive_layers_of(model: Any) -> SensitiveLayers:
    """The sensitive layers of a loaded ONNX model."""
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    constants |= {n.output[0] for n in graph.node if n.op_type == "Constant"}
    nodes = [
        Node(n.name, n.op_type, tuple(i for i in n.input if i not in constants), tuple(n.output))
        for n in graph.node
    ]
    image = next(i.name for i in graph.input if i.name not in constants)
    return find_sensitive_layers(nodes, image=image, result=graph.output[0].name)


def _convolutions_of_pooled(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Convolutions that see only values pooled over the image."""
    found, pooled = [], set[str]()
    for node in nodes:
        if node.kind in _POOLS or (node.inputs and pooled >= set(node.inputs)):
            pooled |= set(node.outputs)
            if node.kind in _CONVOLUTIONS:
                found.append(node.name)
    return tuple(found)


def _walk_from(
    nodes: Iterable[tuple[Node, tuple[str, ...], tuple[str, ...]]], start: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Convolutions met first when walking from a tensor, and the pointwise nodes walked through."""
    found, passed, walked = [], [], {start}
    for node, near, far in nodes:
        if not walked & set(near):
            continue
        if node.kind in _CONVOLUTIONS:
            found.append(node.name)
        elif node.kind in _PASSED:
            passed.append(node.name)
            walked |= set(far)
    return tuple(found), tuple(passed)
