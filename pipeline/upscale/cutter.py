"""How to cut pictures into tiles so that a bound of memory holds."""

from __future__ import annotations

import logging
from contextlib import closing

import numpy as np

from mipkd.core import memory
from mipkd.core.errors import StageError
from mipkd.core.images import ByteArray
from mipkd.core.records import Built
from pipeline.bench.latency import measure_memory_rise
from pipeline.bundle import manifest
from pipeline.upscale.pictures import Picture
from pipeline.upscale.tiles import bands
from targets._images import upscale
from targets._tiles import Tiling, spans
from targets.base import Session, find

log = logging.getLogger(__name__)

_PER_PIXEL = 16 * 1024  # bytes of activations an LR pixel, where the system does not tell
# LR pixels a side of images that show how much memory a pixel takes
_SMALL, _TRIED = 16, 256
_MOST = 1024  # LR pixels a side of a tile: larger ones are no faster


class Cutter:
    """How to cut pictures so that a bound of memory holds."""

    def __init__(
        self,
        model: manifest.Model,
        built: Built,
        memory_bytes: int,
        side: int | None,
        *,
        at_once: int = 1,
    ) -> None:
        """`at_once` is how many tiles are run at a time."""
        self.built, self._at_once = built, at_once
        self._model, self._memory_bytes, self._side = model, memory_bytes, side
        self._looked, self._per_pixel, self._left, self._size = False, 0, 0, (0, 0)
        self._knows_memory = side is not None

    def bytes_left(self) -> int:
        """What a picture may take while it is read."""
        return self._memory_bytes - (memory.resident_bytes() or 0)

    def look(self, picture: Picture) -> int | None:
        """Find out what a pixel takes, once, and what cutting changes in levels, on the first
        picture that is cut; in a session of its own, for one keeps the memory of all it ran."""
        if self._looked or (self._knows_memory and not self._cuts(picture)):
            return None
        with closing(find(self._model.target).open(self.built)) as session:
            if not self._knows_memory:
                self._per_pixel = _bytes_per_pixel(session, self._model)
                self._left = self.bytes_left()
                self._knows_memory = True
            self._looked = self._cuts(picture)
            return difference(session, picture.rgb_HWC, self.tiling(picture), self._model.scale)

    def _cuts(self, picture: Picture) -> bool:
        longest: int = max(picture.rgb_HWC.shape[:2])
        return longest > self.tiling(picture).side

    def tiling(self, picture: Picture) -> Tiling:
        """For pictures of that width.

        Raises:
            StageError: memory does not hold one tile.
        """
        margin, step = self._model.margin, self._model.multiple
        if self._side is not None:
            return Tiling(self._side // step * step or self._side, margin, step, exact=True)
        # A band of the result is held as a whole, and once more where it is join_alpha with alpha.
        row_bytes = picture.rgb_HWC.shape[1] * self._model.scale**2 * 3 * 2
        least = smallest_side(margin, step)
        for side in range(_MOST, least - 1, -16):
            tile_bytes = side * side * self._per_pixel + side * row_bytes
            if self._at_once * tile_bytes <= self._left:
                log.debug("tiles of at most %d LR pixels, %d bytes each", side, self._per_pixel)
                return Tiling(side // step * step, margin, step)
        raise StageError(
            f"upscale: {self._memory_bytes / 2**20:.0f} MiB do not hold a tile of {least}x{least} "
            "LR pixels",
            hint="raise --memory, or choose a smaller --precision",
        )

    def is_new(self, picture: Picture, tiling: Tiling) -> bool:
        """Whether its tiles are of another size than those before."""
        before = self._size
        height, width = (spans(length, tiling)[0].stop for length in picture.rgb_HWC.shape[:2])
        self._size = height, width
        return before not in ((0, 0), self._size)


def difference(session: Session, lr_HWC: ByteArray, tiling: Tiling, scale: int) -> int | None:
    """Largest difference in levels between tiles and one piece, on a part where both fit.

    None where the part is no larger than the smallest tile.
    """
    margin, step = tiling.margin, tiling.multiple
    whole = min(tiling.side, max(_TRIED, 2 * smallest_side(margin, step)))
    part = np.ascontiguousarray(lr_HWC[:whole, :whole])
    smaller = Tiling(max(whole // 2, smallest_side(margin, step)), margin, step)
    if max(part.shape[:2]) <= smaller.side:
        return None  # it would be one tile
    one = upscale(session, part, scale=scale, multiple=step)
    cut = np.concatenate(list(bands(session, part, smaller, scale=scale)))
    return int(np.abs(one.astype(np.int16) - cut).max())


def smallest_side(margin: int, multiple: int) -> int:
    """LR pixels a side of the smallest tile that holds more than its margins."""
    return 2 * margin + 2 * multiple + 1


def _bytes_per_pixel(session: Session, model: manifest.Model) -> int:
    """What an LR pixel takes from its bytes to those of its result, where the system tells."""

    def run(size: int) -> None:
        image = np.zeros((size, size, 3), np.uint8)
        upscale(session, image, scale=model.scale, multiple=model.multiple)

    run(_SMALL)
    with measure_memory_rise() as bytes_more:
        run(_TRIED)
    return max(bytes_more[0], _TRIED**2) // _TRIED**2 if bytes_more else _PER_PIXEL
