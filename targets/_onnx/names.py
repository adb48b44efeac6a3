"""Names of an ONNX graph's tensors: who reads them, and new ones that nobody has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def with_branches(node: Any) -> Iterator[Any]:
    """A node and those of its branches, which read tensors from outside by name."""
    yield node
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
        for inner in (one for graph in graphs for one in graph.node):
            yield from with_branches(inner)


def namer(graph: Any) -> Callable[[str], str]:
    """A function that makes a name new to the graph, for a tensor or a node, by underscores."""
    taken = {one.name for one in (*graph.input, *graph.output, *graph.initializer)}
    for node in (one for outer in graph.node for one in with_branches(outer)):
        taken |= {node.name, *node.input, *node.output}

    def new(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    return new
