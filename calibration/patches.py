"""Choose LR patches for calibration: edges, brightness and saturation of many training photos."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray, luma
from mipkd.core.photos import Photo, open_photos
from mipkd.core.records import PatchSet, Photos

_FEWEST = 2  # photos
_DRAWS = 8  # candidates for each patch that is kept
_HELD = 0.2  # of the photos: what a search is judged on is not what ranges are read from


def choose(photos: Photos, *, count: int, size: int, seed: int, out: Path) -> PatchSet:
    """`count` patches of `size` LR pixels, saved as uint8 NHWC in `out`/patches.npy.

    None is of a photo that `split` holds out.

    Raises:
        UsageError: fewer than two photos, or none is large enough.
    """
    every = [photo.lr_HWC for photo in open_photos(photos)]
    sizes = [(image.shape[0], image.shape[1]) for image in every]
    large = [every[i] for i in find_large(sizes, size=size, seed=seed, source=photos.source)]
    rng = np.random.default_rng(seed)
    drawn = np.stack([_draw(large, size, rng) for _ in range(count * _DRAWS)])
    chosen = drawn[spread(drawn, count)]
    file = out / "patches.npy"
    np.save(file, chosen)
    return PatchSet(
        file=file,
        sha256=hashlib.sha256(chosen.tobytes()).hexdigest(),
        source=photos.source,
        count=count,
        size=(size, size),
    )


def find_large(
    lr_sizes: Sequence[tuple[int, int]], *, size: int, seed: int, source: str
) -> list[int]:
    """Which photos of these LR heights and widths patches of `size` pixels can be drawn from.

    Raises:
        UsageError: fewer than two photos, or none is large enough.
    """
    if len(lr_sizes) < _FEWEST:
        raise UsageError(
            f"calibrate: {source} has {len(lr_sizes)} photo that can be used; "
            f"{_FEWEST} are the fewest: one for ranges, one to check them on",
            hint="give a folder of photos: --data",
        )
    held = held_photos(len(lr_sizes), seed)
    large = [i for i, sides in enumerate(lr_sizes) if i not in held and min(sides) >= size]
    if not large:
        raise UsageError(
            f"calibrate: no photo of {source} has {size} LR pixels a side",
            hint=f"give larger photos, or --set calibrate.size={size // 2}",
        )
    return large


def split(photos: Photos, seed: int) -> tuple[list[Photo], list[Photo]]:
    """Photos to calibrate on, and those held out; the same ones for the same seed."""
    every = open_photos(photos)
    held = held_photos(len(every), seed)
    return (
        [p for i, p in enumerate(every) if i not in held],
        [p for i, p in enumerate(every) if i in held],
    )


def as_batches(patches: PatchSet) -> list[npt.NDArray[np.float32]]:
    """The patches one by one, float32 NCHW in [0, 1]."""
    images = np.load(patches.file).transpose(0, 3, 1, 2).astype(np.float32) / 255
    return [image[None] for image in images]


def spread(patches: ByteArray, count: int) -> npt.NDArray[np.int64]:
    """Indices of `count` patches: even steps of brightness, and within each step in turn flat,
    busy, grey and colourful ones, so that the rare ones are all there."""
    y = np.stack([luma(patch) for patch in patches])
    edges = np.abs(np.diff(y, axis=1)).mean((1, 2)) + np.abs(np.diff(y, axis=2)).mean((1, 2))
    colour = (patches.max(-1).astype(np.int16) - patches.min(-1)).mean((1, 2))
    groups = np.array_split(np.argsort(y.mean((1, 2)), kind="stable"), count)
    turns = ((edges, 0.0), (edges, 1.0), (colour, 1.0), (edges, 0.5), (colour, 0.0))
    picked = []
    for number, group in enumerate(groups):
        by, quantile = turns[number % len(turns)]
        ordered = group[np.argsort(by[group], kind="stable")]
        picked.append(ordered[round(quantile * (len(group) - 1))])
    return np.array(picked)


def held_photos(count: int, seed: int) -> set[int]:
    """Which of `count` photos `split` holds out, by their index."""
    held = max(1, round(_HELD * count))
    return set(np.random.default_rng(seed).permutation(count)[:held].tolist())


def _draw(images: list[ByteArray], size: int, rng: np.random.Generator) -> ByteArray:
    image = images[rng.integers(len(images))]
    top, left = (rng.integers(side - size + 1) for side in image.shape[:2])
    return np.array(image[top : top + size, left : left + size])
