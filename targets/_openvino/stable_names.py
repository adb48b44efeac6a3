"""Names of a converted graph that do not depend on what this process converted before.

OpenVINO calls a node that it makes by its kind and a number that counts all nodes of the process.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_COUNTED = re.compile(r"([A-Z][A-Za-z0-9]*)_\d+(?=/|$)")  # "Constant_32308/fq_weights_1"


def number_in_order(model: Any, names: Collection[str]) -> None:
    """Number the nodes that have such a name by their order in `model`; `names`, those of the file
    that it was converted from, stay."""
    renamed: dict[str, str] = {}
    numbers = itertools.count()
    for op in model.get_ordered_ops():
        name = str(op.get_friendly_name())
        counted = _COUNTED.match(name)
        if not counted or counted[0] in names:
            continue
        if counted[0] not in renamed:
            fresh = (f"{counted[1]}_{number}" for number in numbers)
            renamed[counted[0]] = next(one for one in fresh if one not in names)
        op.set_friendly_name(renamed[counted[0]] + name[counted.end() :])


def names_in(file: Path) -> set[str]:
    """Of the operations and tensors of an ONNX file."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    found = {tensor.name for tensor in (*graph.initializer, *graph.input)}
    return found.union(*((node.name, *node.output) for node in graph.node))
