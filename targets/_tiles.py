"""Images in tiles with a margin, and sessions of models that take a few sizes only.

Shapes: N batch, C channels, H W low-res size, S scale. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
class Sizes:
    """What a model takes, and how images of other sizes are brought to it."""

    taken: tuple[tuple[int, int], ...]  # LR height, width; whole multiples of `multiple`
    margin: int  # LR pixels that a tile needs around it
    multiple: int = 1

    def cheapest(self, height: int, width: int) -> list[tuple[Tiling, Tiling]]:
        """Tilings down and across of each size that covers the image, the least work first.

        A side that an image does not fill is padded; one that it exceeds must hold more than
        margins.
        """
        found = []
        for size in self.taken:
            fits = [
                length <= side or side > 2 * self.margin + self.multiple
                for length, side in zip((height, width), size, strict=True)
            ]
            if all(fits):
                down, across = (Tiling(s, self.margin, self.multiple, exact=True) for s in size)
                tiles = len(spans(height, down)) * len(spans(width, across))
                found.append((tiles * size[0] * size[1], tiles, (down, across)))
        return [tilings for *_, tilings in sorted(found, key=lambda one: one[:2])]


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
        tilings = self.sizes.cheapest(height, width)
        if not tilings:
            raise self._too_large(height, width)
        down, across = tilings[0]
        found = [
            (rows, columns, self._run_tile(lr_NCHW, rows, columns, (down.side, across.side)))
            for rows in spans(height, down)
            for columns in spans(width, across)
        ]
        return _join(found, lr_NCHW.shape, down.side)

    def close(self) -> None:
        """Close the model's session."""
        self._session.close()

    def forget_shapes(self) -> None:
        """Few sizes are ever run."""
        self._session.forget_shapes()

    def _run_tile(
        self, lr_NCHW: FloatArray, rows: Span, columns: Span, size: tuple[int, int]
    ) -> FloatArray:
        tile = lr_NCHW[:, :, rows.start : rows.stop, columns.start : columns.stop]
        ends = [(0, side - length) for side, length in zip(size, tile.shape[2:], strict=True)]
        padded = np.pad(tile, ((0, 0), (0, 0), *ends), mode="symmetric")
        return np.array(self._session.run(np.ascontiguousarray(padded)))  # valid until the next

    def _too_large(self, height: int, width: int) -> UnsupportedError:
        known = ", ".join(f"{w}x{h}" for h, w in self.sizes.taken)
        return UnsupportedError(
            f"an image of {width}x{height} LR pixels; this model takes {known}, and tiles need "
            f"more than {2 * self.sizes.margin + self.sizes.multiple} a side",
            hint="build it with larger ones: --set build.tile=256",
        )


def _join(
    tiles: Sequence[tuple[Span, Span, FloatArray]], shape: tuple[int, ...], side: int
) -> FloatArray:
    """The kept parts of upscaled tiles of `side` LR rows, as one image."""
    scale = tiles[0][2].shape[2] // side
    batch, channels = tiles[0][2].shape[:2]
    whole = np.empty((batch, channels, shape[2] * scale, shape[3] * scale), tiles[0][2].dtype)
    for rows, columns, sr in tiles:
        to, cut = zip(*(_kept(span, scale) for span in (rows, columns)), strict=True)
        whole[:, :, to[0], to[1]] = sr[:, :, cut[0], cut[1]]
    return whole


def _kept(span: Span, scale: int) -> tuple[slice, slice]:
    """What is kept of a tile: where it goes in the whole, and where it lies in the tile."""
    ends = span.keep_from, span.keep_to
    inside = (scale * (end - span.start) for end in ends)
    return slice(*(scale * end for end in ends)), slice(*inside)
