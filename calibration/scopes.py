"""Which layers stay float, read from the graph alone.

Measured on SR nets: 8 bits cost most at the first and the last convolution and where skips
are added, because these carry the image itself rather than a correction to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POINTWISE = {"Sub", "Mul", "Add", "Div", "Clip", "DepthToSpace", "Identity", "Cast"}


@dataclass(frozen=True)
class Scopes:
    """Names of graph nodes."""

    head: tuple[str, ...]  # convolutions that see the image
    tail: tuple[str, ...]  # convolutions whose output is the image
    adds: tuple[str, ...]  # sums of two feature maps
    attention: bool  # has matrix products of two feature maps


def scopes(onnx_file: Path) -> Scopes:
    """The parts of an SR graph that quantisers should know."""
    import onnx

    graph = onnx.load(onnx_file, load_external_data=False).graph
    constants = {t.name for t in graph.initializer}
    constants |= {n.output[0] for n in graph.node if n.op_type == "Constant"}
    image = next(i.name for i in graph.input if i.name not in constants)
    return Scopes(
        head=_reached(graph, image, forward=True),
        tail=_reached(graph, graph.output[0].name, forward=False),
        adds=tuple(
            n.name for n in graph.node if n.op_type == "Add" and not constants & set(n.input)
        ),
        attention=any(n.op_type == "MatMul" and not constants & set(n.input) for n in graph.node),
    )


def _reached(graph: Any, start: str, *, forward: bool) -> tuple[str, ...]:
    """Convolutions met first when walking from a tensor through pointwise nodes."""
    found, open_tensors = [], {start}
    nodes = graph.node if forward else reversed(graph.node)
    for node in nodes:
        near, far = (node.input, node.output) if forward else (node.output, node.input)
        if not open_tensors & set(near):
            continue
        if node.op_type == "Conv":
            found.append(node.name)
        elif node.op_type in _POINTWISE:
            open_tensors |= set(far)
    return tuple(found)
