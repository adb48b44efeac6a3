"""The crops that searches are judged on."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from calibration import holdout
from mipkd.core.measurement import Against
from mipkd.core.records import Graph, Holdout, Model, Photos
from pipeline.reference_net import open_reference
from pipeline.stage import Ref, stage


class HoldoutConfig(BaseModel):
    """What candidates are judged on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Crops of photos that calibration does not use, to choose on; as many of others confirm it.
    photos: int = Field(40, ge=2)
    pages: int = Field(6, ge=0)  # drawn pages with letters and flat colours, beside both
    crop: int = Field(80, ge=16)  # LR pixels a side of both
    seed: int = 0


@dataclass(frozen=True)
class HoldOutInputs:
    """`split_seed` is calibration's, which parts the photos.

    With a `reference` they are LR frames without truth, and that net's image stands for it:
    `against` says which one it is.
    """

    config: HoldoutConfig
    photos: Ref[Photos]
    split_seed: int
    reference: Ref[Model] | Ref[Graph] | None = None
    against: Against = "truth"


@stage(version=5)
def hold_out(inputs: HoldOutInputs, *, out: Path) -> Holdout:
    """Crops that a search is judged on."""
    config, reference = inputs.config, inputs.reference
    with open_reference(reference.value) if reference else nullcontext() as upscale:
        return holdout.hold(
            inputs.photos.value,
            count=config.photos,
            pages=config.pages,
            size=config.crop,
            seed=config.seed,
            split_seed=inputs.split_seed,
            out=out,
            upscale=upscale,
            against=inputs.against,
        )
