"""Convert, and for INT8 quantise, a graph into a target's own format."""

from pathlib import Path

from mipkd.core.records import Built, Graph, PatchSet
from pipeline.run import stage
from targets.base import find


@stage(version=2)
def build(
    precision: str,
    target: str,
    graph: Graph,
    calibration: PatchSet | None,
    versions: dict[str, str],
    out: Path,
) -> Built:
    """`graph` for `target` at `precision`; `versions` only make the step's key."""
    chosen = find(target)
    return chosen.build(graph, precision, calibration, out)
