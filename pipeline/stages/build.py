"""Convert, and for INT8 quantise, a graph into a target's own format."""

from pathlib import Path
from typing import cast

from mipkd.core.records import Built, Graph, PatchSet, QuantPlan
from pipeline.run import stage
from targets.base import Tunable, find


@stage(version=3)
def build(
    precision: str,
    target: str,
    graph: Graph,
    calibration: PatchSet | None,
    versions: dict[str, str],
    plan: QuantPlan | None,
    out: Path,
) -> Built:
    """`graph` for `target` at `precision`; `versions` only make the step's key."""
    chosen = find(target)
    if plan is None or plan.fixed:
        return chosen.build(graph, precision, calibration, out)
    return cast("Tunable", chosen).build(graph, precision, calibration, out, plan=plan)
