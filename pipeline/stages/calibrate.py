"""Choose the patches that quantisers see: from training photos, never from test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from calibration import patches
from mipkd.core.records import PatchSet, Photos
from pipeline.stage import Ref, stage


class CalibrateConfig(BaseModel):
    """How many patches, how large (LR pixels), and which draw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = 64
    size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class CalibrateInputs:
    """Training photos, of which some are kept from calibration for the holdout."""

    config: CalibrateConfig
    photos: Ref[Photos]


@stage(version=3)
def calibrate(inputs: CalibrateInputs, *, out: Path) -> PatchSet:
    """LR patches of the training photos.

    Raises:
        UsageError: too few photos.
    """
    config, photos = inputs.config, inputs.photos.value
    return patches.choose(photos, count=config.count, size=config.size, seed=config.seed, out=out)
