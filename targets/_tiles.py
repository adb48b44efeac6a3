"""Images in tiles with a margin, and sessions of models that take a few sizes only.

Shapes: N batch, C channels, H W low-res size, S scale. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from mipkd.core.errors import UnsupportedError
from targets.base import FloatArray, Session


@dataclass(frozen=True)
class Tiling:
    """How an image may be cut. LR pixels."""

    side: int  # of a tile at most, margins included
    margin: int  # what a net looks at around a pixel
    multiple: int  # tiles begin at multiples of it, as the net's windows do in the whole image
    exact: bool = False  # tiles of just that side, where the image is larger


@dataclass(frozen=True)
class Span:
    """One tile in one dimension: what is read, and which part of it is kept."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


def spans(length: int, tiling: Tiling) -> list[Span]:
    """The fewest tiles along a side, all of one size, no larger than they need be.

    Their kept parts cover `length` once, cut in the middle of where two overlap: at least the
    margin away from where a tile was cut, not from the image's end.
    """
    step = tiling.multiple
    most, overlap = tiling.side // step * step, -(-2 * tiling.margin // step) * step
    whole = -(-length // step) * step  # a net pads the last tile to the size of the others
    if length <= tiling.side:
        return [Span(0, length, 0, length)]
    assert most > overlap, "a tile holds more than its margins"
    count = -(-(whole - overlap) // (most - overlap))
    size = -(-(whole + (count - 1) * overlap) // count // step) * step
    if tiling.exact:
        size = most
    starts = [(whole - size) * n // (count - 1) // step * step for n in range(count)]
    stops = [*(start + size for start in starts[:-1]), length]
    joints = [(a + b) // 2 for a, b in zip(starts[1:], stops[:-1], strict=True)]
    return [
        Span(*ends) for ends in zip(starts, stops, [0, *joints], [*joints, length], strict=True)
    ]


@dataclass(frozen=True)
class Tile:
    """A part of an image that a model is given, padded to `size` where it is smaller."""

    rows: Span
    columns: Span
    size: tuple[int, int]  # LR height, width

    def read(self, lr_NCHW: FloatArray) -> FloatArray:
        """Its pixels, shape (N, C, H, W) of its size."""
        tile = lr_NCHW[
            :, :, self.rows.start : self.rows.stop, self.columns.start : self.columns.stop
        ]
        ends = [(0, side - length) for side, length in zip(self.size, tile.shape[2:], strict=True)]
        return np.ascontiguousarray(np.pad(tile, ((0, 0), (0, 0), *ends), mode="symmetric"))


@dataclass(frozen=True)
class Sizes:
    """What a model takes, and how images of other sizes are brought to it."""

    taken: tuple[tuple[int, int], ...]  # LR height, width; whole multiples of `multiple`
    margin: int  # LR pixels that a tile needs around it
    multiple: int = 1

    def tiles(self, height: int, width: int) -> list[Tile]:
        """The tiles that an image becomes, all of the size that makes the least work.

        A side that an image does not fill is padded; one that it exceeds must hold more than
        margins.

        Raises:
            UnsupportedError: no size does.
        """
        ways = [self._cut(height, width, size) for size in self.taken]
        fitting = [tiles for tiles in ways if tiles]
        if not fitting:
            known = ", ".join(f"{w}x{h}" for h, w in self.taken)
            raise UnsupportedError(
                f"an image of {width}x{height} LR pixels; this model takes {known}, and tiles need "
                f"more than {2 * self.margin + self.multiple} a side",
                hint="build it with larger ones: --set build.tile=256",
            )
        return min(fitting, key=lambda tiles: (len(tiles) * prod(tiles[0].size), len(tiles)))

    def _cut(self, height: int, width: int, size: tuple[int, int]) -> list[Tile]:
        """Tiles of one size; none where margins leave nothing of them."""
        for length, side in zip((height, width), size, strict=True):
            if length > side <= 2 * self.margin + self.multiple:
                return []
        down, across = (Tiling(side, self.margin, self.multiple, exact=True) for side in size)
        return [
            Tile(rows, columns, size)
            for rows in spans(height, down)
            for columns in spans(width, across)
        ]


class FixedSizes(Session):
    """A session of a model that takes some sizes only: other images are padded or cut.

    Pixels near the lower and right end of a padded image see its mirror where a net's own padding
    would be; those of tiles are the same as in one piece where the margin is the net's.
    """

    def __init__(self, session: Session, sizes: Sizes) -> None:
        self._session, self.sizes = session, sizes
        self.takes_uint8 = session.takes_uint8

    def around(self, other: Session) -> FixedSizes:
        """Another model's session, given the same tiles: what it is compared with."""
        return FixedSizes(other, self.sizes)

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (N, C, S*H, S*W); a size that the model takes is run as it is.

        Raises:
            UnsupportedError: no size that it takes suffices.
        """
        height, width = lr_NCHW.shape[2:]
        if (height, width) in self.sizes.taken:
            return self._session.run(lr_NCHW)
        tiles = self.sizes.tiles(height, width)
        # What a session gives is valid until its next call.
        found = [(tile, np.array(self._session.run(tile.read(lr_NCHW)))) for tile in tiles]
        return _join(found, lr_NCHW.shape)

    def close(self) -> None:
        """Close the model's session."""
        self._session.close()

    def forget_shapes(self) -> None:
        """Few sizes are ever run."""
        self._session.forget_shapes()


def _join(tiles: Sequence[tuple[Tile, FloatArray]], shape: tuple[int, ...]) -> FloatArray:
    """The kept parts of upscaled tiles, as one image."""
    first, sr = tiles[0]
    batch, channels, scale = *sr.shape[:2], sr.shape[2] // first.size[0]
    whole = np.empty((batch, channels, shape[2] * scale, shape[3] * scale), sr.dtype)
    for tile, sr in tiles:
        to, cut = zip(*(_kept(span, scale) for span in (tile.rows, tile.columns)), strict=True)
        whole[:, :, to[0], to[1]] = sr[:, :, cut[0], cut[1]]
    return whole


def _kept(span: Span, scale: int) -> tuple[slice, slice]:
    """What is kept of a tile: where it goes in the whole, and where it lies in the tile."""
    ends = span.keep_from, span.keep_to
    inside = (scale * (end - span.start) for end in ends)
    return slice(*(scale * end for end in ends)), slice(*inside)
