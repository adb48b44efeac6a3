"""Refuse photos that hold a test image, before anything is trained or calibrated on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray
from mipkd.core.photos import open_photos
from mipkd.core.records import Photos, TestSet
from mipkd.distill.data import load_tests
from pipeline.stage import Ref, stage

_Key = tuple[tuple[int, ...], bytes]  # shape, and a hash over the pixels


@dataclass(frozen=True)
class KeepApartInputs:
    """Photos to train and calibrate on, and all images that something is judged on."""

    photos: Ref[Photos]
    tests: tuple[Ref[TestSet], ...]


@stage(version=1)
def keep_apart(inputs: KeepApartInputs, *, out: Path) -> int:
    """How many photos were compared with the test images; names and file formats do not matter.

    Raises:
        UsageError: a test image is among the photos.
    """
    tested = {
        _key(hr_HWC): f"{name} of {one.source}"
        for one in (ref.value for ref in inputs.tests)
        for name, _, hr_HWC in load_tests(one)
    }
    shapes = {shape for shape, _ in tested}
    photos = inputs.photos.value
    found = open_photos(photos)
    for photo in (photo for photo in found if photo.hr_HWC.shape in shapes):
        if image := tested.get(_key(photo.hr_HWC)):
            raise UsageError(
                f"--data: {photo.name} of {photos.source} is the test image {image}",
                hint="neither weights nor INT8 ranges may come from what they are judged on: "
                "take it out of --data",
            )
    return len(found)


def _key(image_HWC: ByteArray) -> _Key:
    return image_HWC.shape, hashlib.sha256(np.ascontiguousarray(image_HWC).data).digest()
