"""Convert, and for INT8 quantise, a graph into a target's own format."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from mipkd.core.records import Built, Graph, PatchSet, QuantPlan, Told
from pipeline.run import stage
from targets.base import Tunable, find


@stage(version=5)
def build(
    precision: str,
    target: str,
    graph: Graph,
    calibration: PatchSet | None,
    versions: dict[str, str],
    plan: QuantPlan | None,
    on: Told | None = None,
    *,
    out: Path,
) -> Built:
    """`graph` for `target` at `precision`, to run `on` another machine or on this one.

    `versions` are those of this machine, which builds.
    """
    chosen = find(target)
    if plan is None or plan.fixed:
        built = chosen.build(graph, precision, calibration, out, on=on)
    else:
        tunable, tuned = cast("Tunable", chosen), plan.tuned
        of = tuned.graph if tuned else graph
        built = tunable.build(of, precision, calibration, out, on=on, plan=plan)
        if tuned:
            note = f"trained on with INT8's rounding: {tuned.steps} steps, {tuned.seconds:.0f} s"
            built = replace(built, notes=(*built.notes, note))
    return replace(built, versions=versions)
