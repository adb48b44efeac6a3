"""Opsets of foreign ONNX graphs: which are known, and the raising of old ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import onnx
from onnx import TensorProto, helper, version_converter

from mipkd.export.onnx import open_session

LEAST = 13  # for per-channel scales
_MODERN_RESIZE = 11  # the first opset in which an operator states how it maps coordinates
_OWN = ("", "ai.onnx")


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators; 0 where a model states none."""
    return next((int(o.version) for o in model.opset_import if o.domain in _OWN), 0)


def graphs_in(model: Any) -> Iterator[Any]:
    """The graph, and those inside its nodes (branches, loops) and functions."""
    yield model.graph
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        yield from _inner(nodes)


def nodes_in(model: Any) -> Iterator[Any]:
    """Every node, those of branches and functions included."""
    for holder in (*graphs_in(model), *model.functions):
        yield from holder.node


def operators_in(model: Any) -> set[tuple[str, str]]:
    """Domain and kind of every node, those of branches and functions included."""
    return {(node.domain, node.op_type) for node in nodes_in(model)}


def raise_opset(model: Any) -> Any:
    """A copy of a model in opset `LEAST`, by onnx's converter.

    The converter forgets metadata, and that Upsample and old Resize map coordinates otherwise
    than what Resize does by default now: both are put right.

    Raises:
        RuntimeError, ValueError: of the converter, which does not know every operator.
    """
    converted = version_converter.convert_version(model, LEAST)
    del converted.metadata_props[:]
    converted.metadata_props.extend(model.metadata_props)
    if opset_of(model) < _MODERN_RESIZE:
        for node in converted.graph.node:
            if node.op_type == "Resize":
                _map_as_before(node)
    return converted


@cache
def largest_opset() -> int:
    """The largest opset that the installed onnx knows and the installed ONNX Runtime opens."""
    known = range(onnx.defs.onnx_opset_version(), LEAST, -1)
    return next((opset for opset in known if _opens(opset)), LEAST)


def _inner(nodes: Any) -> Iterator[Any]:
    for attribute in (a for node in nodes for a in node.attribute):
        held = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in held:
            yield graph
            yield from _inner(graph.node)


def _map_as_before(node: Any) -> None:
    """State what opsets 7 to 10 do: the first pixel of both images at 0, rounding downwards.

    Source: ONNX Runtime's upsamplebase.h, which has "asymmetric" and, for enlargement, "floor".
    """
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"nearest")
    stated = {"coordinate_transformation_mode": "asymmetric"}
    if mode == b"nearest":
        stated["nearest_mode"] = "floor"
    kept = [a for a in node.attribute if a.name not in stated]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in stated.items())])


def _opens(opset: int) -> bool:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "g", ends[:1], ends[1:])
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=onnx.IR_VERSION_2019_9_19
    )
    try:
        open_session(made.SerializeToString())
    except Exception:  # onnxruntime has no public base class
        return False
    return True


def count_inlined(model: Any) -> float:
    """How many operators a model holds once each call of a function is its body; infinite where a
    function calls itself."""
    bodies = {(f.domain, f.name): f.node for f in model.functions}
    known: dict[tuple[str, str], float] = {}

    def count(nodes: Any) -> float:
        return sum(count_one(node.domain, node.op_type) for node in nodes)

    def count_one(domain: str, name: str) -> float:
        key = (domain, name)
        if key not in bodies:
            return 1
        if key not in known:
            known[key] = math.inf  # until it is known: within itself
            known[key] = count(bodies[key])
        return known[key]

    return count(model.graph.node)
