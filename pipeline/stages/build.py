"""Convert, and for INT8 quantise, a graph into a target's own format."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mipkd.core import plugins
from mipkd.core.errors import UnsupportedError
from mipkd.core.precision import PRECISIONS
from mipkd.core.records import Built, Graph, Model, PatchSet, QuantPlan, TargetInfo
from pipeline.stage import NotInKey, Ref, stage
from targets.base import BuildRequest, Pixels, Target, find

_COMPARED = 2  # photos


class BuildConfig(BaseModel):
    """What the models that are built take and give."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Of 8 bits: range, clipping and rounding happen in the model, where its target can do that.
    pixels: Pixels = "float32"
    # What ncnn's blobs and files are called: as pnnx calls them, or as the apps Real-ESRGAN-ncnn
    # and upscayl look for them.
    ncnn_names: Literal["pnnx", "realesrgan"] = "pnnx"
    # LR pixels a side of the tiles of larger images, for targets that build for some sizes.
    # 0: the sizes that are measured suffice.
    tile: int = Field(default=256, ge=0, le=2048)
    # For the sizes that are measured and tiles alone, where the target can do that.
    fixed_sizes: bool = False


@dataclass(frozen=True)
class BuildInputs:
    """A graph at a precision, for a target on the machine that will run it.

    `photos` are patches that a float model is compared with its graph on, where both run here.
    """

    config: BuildConfig
    precision: str
    info: TargetInfo
    graph: Ref[Graph]
    calibration: Ref[PatchSet] | None
    plan: Ref[QuantPlan] | None
    photos: NotInKey[Ref[PatchSet] | None] = field(default_factory=lambda: NotInKey(None))
    sizes: tuple[tuple[int, int], ...] = ()  # LR, where the target builds for some sizes


@stage(version=16, apart=True)
def build(inputs: BuildInputs, *, out: Path) -> Built:
    """The model in the target's own format, with the versions of what built it here.

    Raises:
        UnsupportedError: the target has no models on such pixels, or converting the graph
            changed its pixels.
    """
    plan = inputs.plan.value if inputs.plan else None
    tuned, target = plan.tuned if plan else None, find(inputs.info.target)
    request = BuildRequest(
        graph=tuned.graph if tuned else inputs.graph.value,
        precision=inputs.precision,
        out=out,
        patches=inputs.calibration.value if inputs.calibration else None,
        on=inputs.info,
        plan=None if plan is None or plan.fixed else plan,
        scheme=tuned.rounding if tuned else None,
        pixels=inputs.config.pixels,
        load_net=load_deployed,
        ncnn_names=inputs.config.ncnn_names,
        sizes=inputs.sizes,
        fixed_sizes=inputs.config.fixed_sizes,
        margin=_find_margin(inputs),
    )
    built = target.build(request)
    if inputs.info.local and target.makes_pixels and PRECISIONS[inputs.precision].is_float:
        _check_pixels(target, built, request, inputs.photos.value)
    if tuned:
        note = f"trained on with INT8's rounding: {tuned.steps} steps, {tuned.seconds:.0f} s"
        built = replace(built, notes=(*built.notes, note))
    return replace(built, versions=target.versions())


def _find_margin(inputs: BuildInputs) -> int:
    """LR pixels that a tile needs around it; looked for where a model is built for some sizes."""
    from mipkd.export.receptive_field import find_receptive_field

    graph = inputs.graph.value
    if not inputs.sizes:
        return BuildRequest.margin
    return find_receptive_field(graph.file, graph.multiple).radius


def _check_pixels(
    target: Target, built: Built, request: BuildRequest, photos: Ref[PatchSet] | None
) -> None:
    """Compare a copy of what was built with its graph: what is kept of a first start, such as
    compiled kernels, must not make the start that is measured a warm one."""
    from targets._parity import check_pixels

    patches = list(np.load(photos.value.file)[:_COMPARED]) if photos else []
    odd = [patch[: -1 - len(patch) % 2, : -1 - patch.shape[1] % 2] for patch in patches]
    with TemporaryDirectory() as folder:
        copy = shutil.copytree(request.out, Path(folder) / "copy")
        moved = replace(built, file=copy / built.file.relative_to(request.out))
        check_pixels(target, moved, request.graph, odd)


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
    return load(model).to_deployed()
