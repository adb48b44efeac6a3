"""Convert, and for INT8 quantise, a graph into a target's own format."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict

from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Built, Graph, PatchSet, QuantPlan, Told
from pipeline.run import Ref, stage
from targets.base import OnBytes, Teachable, Tunable, find


class BuildConfig(BaseModel):
    """What the models that are built take and give."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # "uint8": range, clipping and rounding happen in the model, where its target can do that.
    pixels: Literal["float32", "uint8"] = "float32"


@dataclass(frozen=True)
class BuildInputs:
    """A graph for a target at a precision, to run `on` another machine or on this one (None)."""

    config: BuildConfig
    precision: str
    target: str
    graph: Ref[Graph]
    calibration: Ref[PatchSet] | None
    plan: Ref[QuantPlan] | None
    on: Told | None = None


@stage(version=9)
def build(inputs: BuildInputs, *, out: Path) -> Built:
    """The model in the target's own format, with the versions of what built it here.

    Raises:
        UnsupportedError: the target has no models on uint8.
    """
    target, precision, on = inputs.target, inputs.precision, inputs.on
    calibration = inputs.calibration.value if inputs.calibration else None
    plan = inputs.plan.value if inputs.plan else None
    chosen = find(target)
    on_bytes = inputs.config.pixels == "uint8"
    if on_bytes and not hasattr(chosen, "on_bytes"):
        raise UnsupportedError(
            f"build.pixels: {target} has no models on uint8 here", hint="leave it at float32"
        )
    tuned = plan.tuned if plan else None
    given = (tuned.graph if tuned else inputs.graph.value, precision, calibration, out)
    if plan and not plan.fixed:
        built = cast("Tunable", chosen).build(*given, on=on, plan=plan)
    elif tuned:
        built = cast("Teachable", chosen).build(*given, on=on, rounding=tuned.rounding)
    else:
        built = chosen.build(*given, on=on)
    if tuned:
        note = f"trained on with INT8's rounding: {tuned.steps} steps, {tuned.seconds:.0f} s"
        built = replace(built, notes=(*built.notes, note))
    if on_bytes:
        built = cast("OnBytes", chosen).on_bytes(built)
    return replace(built, versions=chosen.versions())
