"""How far images are from others of the same names: values, channels, and the worst tile.

Values: uint8 RGB of shape (H, W, 3). Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mipkd.core.errors import StageError
from mipkd.core.images import PSNR_OF_EQUAL_DB, ByteArray, psnr_of

TILE = 32  # pixels a side
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Difference:
    """Of some images from others."""

    images: int = 0
    levels: int = 0  # the largest, of one value
    share: float = 0.0  # of values that differ
    psnr_db: float = PSNR_OF_EQUAL_DB  # over all values
    shift: float = 0.0  # levels: the mean of the channel and image that are furthest off
    shifted: str = ""  # which these are: "red of baby +1.00"
    tile_db: float = PSNR_OF_EQUAL_DB  # PSNR over the tile that is furthest off
    tile: str = ""  # which that is: "baby at 32,64" (column, row)


def compare_images(pairs: Iterable[tuple[str, ByteArray, ByteArray]]) -> Difference:
    """Of `(name, image, other)`.

    Raises:
        StageError: two of a pair differ in size.
    """
    images = levels = differing = values = 0
    squares, shift, tile = 0.0, (0.0, ""), (0.0, "")
    for name, image, other in pairs:
        if image.shape != other.shape:
            raise StageError(f"{name}: output of {image.shape}, golden one of {other.shape}")
        apart = image.astype(np.int16) - other
        images += 1
        levels = max(levels, int(np.abs(apart).max()))
        differing += int(np.count_nonzero(apart))
        values += apart.size
        squares += float(np.square(apart, dtype=np.float64).sum())
        shift = max(shift, *_shifts(name, apart), key=lambda found: abs(found[0]))
        tile = max(tile, _worst_tile(name, apart))
    if not values:
        return Difference()
    mse, worst = squares / values, psnr_of(tile[0])
    return Difference(images, levels, differing / values, psnr_of(mse), abs(shift[0]), shift[1],
                      worst, tile[1])  # fmt: skip


def tile_errors(image_HWC: ByteArray, other_HWC: ByteArray) -> npt.NDArray[np.float64]:
    """Mean squared error of each tile, one row of them a row; those at the ends are smaller."""
    return _by_tile(np.square(image_HWC.astype(np.float64) - other_HWC))


def _shifts(name: str, apart: npt.NDArray[np.int16]) -> Iterator[tuple[float, str]]:
    for colour, shift in zip(COLOURS, apart.mean(axis=(0, 1)).tolist(), strict=True):
        yield shift, f"{colour} of {name} {shift:+.2f}"


def _worst_tile(name: str, apart: npt.NDArray[np.int16]) -> tuple[float, str]:
    errors = _by_tile(np.square(apart, dtype=np.float64))
    return float(errors.max()), place_of_worst(name, errors)


def place_of_worst(name: str, errors: npt.NDArray[np.float64]) -> str:
    """Where in an image the largest of its tiles' figures is."""
    row, column = np.unravel_index(int(errors.argmax()), errors.shape)
    return f"{name} at {column * TILE},{row * TILE}"


def _by_tile(values_HWC: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean of each tile."""
    means: npt.NDArray[np.float64] = values_HWC.mean(axis=2)
    for axis in (0, 1):
        starts = np.arange(0, means.shape[axis], TILE)
        sizes = np.diff(starts, append=means.shape[axis])
        sums = np.add.reduceat(means, starts, axis=axis)
        means = sums / (sizes[:, None] if axis == 0 else sizes)
    return means
