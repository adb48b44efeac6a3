"""Convert, and for INT8 quantise, a graph into a target's own format."""

from dataclasses import replace
from pathlib import Path

from mipkd.core.records import Built, Graph, PatchSet, Told
from pipeline.run import stage
from targets.base import find


@stage(version=3)
def build(
    precision: str,
    target: str,
    graph: Graph,
    calibration: PatchSet | None,
    versions: dict[str, str],
    on: Told | None = None,
    *,
    out: Path,
) -> Built:
    """`graph` for `target` at `precision`, to run `on` another machine or on this one.

    `versions` are those of this machine, which builds.
    """
    chosen = find(target)
    built = chosen.build(graph, precision, calibration, out, on=on)
    return replace(built, versions=versions)
