"""Choose LR patches for calibration: textures and flat parts, dark and bright, from many photos."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray, luma
from mipkd.core.photos import open_photos
from mipkd.core.records import PatchSet, Photos

_DRAWS = 8  # candidates for each patch that is kept


def choose(photos: Photos, *, count: int, size: int, seed: int, out: Path) -> PatchSet:
    """`count` patches of `size` LR pixels, saved as uint8 NHWC in `out`/patches.npy.

    Candidates are drawn at random, ordered by brightness and within that by contrast, and
    taken at even steps, so that the rare dark, bright, flat and busy ones are all there.

    Raises:
        UsageError: no photo is large enough.
    """
    large = [p.lr_HWC for p in open_photos(photos) if min(p.lr_HWC.shape[:2]) >= size]
    if not large:
        raise UsageError(
            f"calibrate: no photo of {photos.source} has {size} LR pixels a side",
            hint=f"give larger photos, or --set calibrate.size={size // 2}",
        )
    rng = np.random.default_rng(seed)
    drawn = np.stack([_draw(large, size, rng) for _ in range(count * _DRAWS)])
    chosen = drawn[_spread(drawn, count)]
    file = out / "patches.npy"
    np.save(file, chosen)
    return PatchSet(
        file=file,
        sha256=hashlib.sha256(chosen.tobytes()).hexdigest(),
        source=photos.source,
        count=count,
        size=(size, size),
    )


def as_batches(patches: PatchSet) -> list[npt.NDArray[np.float32]]:
    """The patches one by one, float32 NCHW in [0, 1]."""
    images = np.load(patches.file).transpose(0, 3, 1, 2).astype(np.float32) / 255
    return [image[None] for image in images]


def _draw(images: list[ByteArray], size: int, rng: np.random.Generator) -> ByteArray:
    image = images[rng.integers(len(images))]
    top, left = (rng.integers(side - size + 1) for side in image.shape[:2])
    return np.array(image[top : top + size, left : left + size])


def _spread(patches: ByteArray, count: int) -> npt.NDArray[np.int64]:
    """Indices at even steps of brightness, alternately flat and busy within each step."""
    y = np.stack([luma(patch) for patch in patches])
    bright, contrast = y.mean((1, 2)), y.std((1, 2))
    groups = np.array_split(np.argsort(bright, kind="stable"), count)
    quantiles = np.linspace(0, 1, 4)
    picked = []
    for number, group in enumerate(groups):
        by_contrast = group[np.argsort(contrast[group], kind="stable")]
        picked.append(by_contrast[round(quantiles[number % 4] * (len(group) - 1))])
    return np.array(picked)
