"""Convert, and for INT8 quantise, a graph into a target's own format."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mipkd.core import plugins
from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Built, Graph, Model, PatchSet, QuantPlan, TargetInfo
from pipeline.run import stage
from targets.base import BuildRequest, find


class BuildConfig(BaseModel):
    """What the models that are built take and give."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # "uint8": range, clipping and rounding happen in the model, where its target can do that.
    pixels: Literal["float32", "uint8"] = "float32"


@stage(version=9)
def build(
    config: BuildConfig,
    precision: str,
    target: str,
    graph: Graph,
    calibration: PatchSet | None,
    versions: dict[str, str],
    plan: QuantPlan | None,
    on: TargetInfo | None = None,
    *,
    out: Path,
) -> Built:
    """`graph` for `target` at `precision`, to run `on` another machine or on this one.

    `versions` are those of this machine, which builds.

    Raises:
        UnsupportedError: the target has no models on uint8.
    """
    tuned = plan.tuned if plan else None
    request = BuildRequest(
        graph=tuned.graph if tuned else graph,
        precision=precision,
        out=out,
        patches=calibration,
        on=on,
        plan=None if plan is None or plan.fixed else plan,
        rounding=tuned.rounding if tuned else None,
        uint8_io=config.pixels == "uint8",
        load_net=load_deployed,
    )
    built = find(target).build(request)
    notes = built.notes
    if tuned:
        trained = f"{tuned.steps} steps, {tuned.seconds:.0f} s"
        notes = (*notes, f"trained on with INT8's rounding: {trained}")
    return replace(built, notes=notes, versions=versions)


def load_deployed(model: Model) -> Any:
    """The torch net of a record, as it is deployed, for targets that convert it.

    Raises:
        UnsupportedError: it is of no family of ours.
    """
    from mipkd.distill.teacher import load

    if model.arch not in (known := plugins.names("mipkd.archs")):
        raise UnsupportedError(
            f"{model.arch} is none of the families that can be converted",
            hint="known: " + ", ".join(known),
        )
    return load(model).deployed()
