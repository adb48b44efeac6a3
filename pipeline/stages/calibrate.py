"""Choose the patches that quantisers see: from training photos, never from test images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from calibration import patches
from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray
from mipkd.core.photos import open_photos
from mipkd.core.records import PatchSet, Photos, TestSet
from mipkd.distill.data import load_tests
from pipeline.run import stage


class CalibrateConfig(BaseModel):
    """How many patches, how large (LR pixels), and which draw."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = 64
    size: int = 64
    seed: int = 0


@stage(version=2)
def calibrate(config: CalibrateConfig, photos: Photos, tests: TestSet, out: Path) -> PatchSet:
    """LR patches of the training photos.

    Raises:
        UsageError: too few photos, or a test image is among them.
    """
    _check_apart(photos, tests)
    return patches.choose(photos, count=config.count, size=config.size, seed=config.seed, out=out)


def _check_apart(photos: Photos, tests: TestSet) -> None:
    """Refuse a test image among the photos, whatever its name and file format."""
    tested = {_digest(hr_HWC): name for name, _, hr_HWC in load_tests(tests)}
    for photo in open_photos(photos):
        if name := tested.get(_digest(photo.hr_HWC)):
            raise UsageError(
                f"calibrate: {photo.name} of {photos.source} is the test image {name} of "
                f"{tests.source}",
                hint="INT8 ranges must not come from what it is judged on: take it out of --data",
            )


def _digest(image_HWC: ByteArray) -> bytes:
    """Of pixels and size."""
    whole = np.ascontiguousarray(image_HWC)
    return hashlib.sha256(str(whole.shape).encode() + whole.tobytes()).digest()
