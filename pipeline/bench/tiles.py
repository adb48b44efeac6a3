"""Images larger than memory: tiles with a margin, in bands from top to bottom.

Shapes: N batch, C channels, H W low-res size, S scale. Values: uint8 RGB. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from targets.base import ByteArray, Session, upscale

_MOST_ROWS = 64  # of tiles, that are tried


@dataclass(frozen=True)
class Tiling:
    """How an image may be cut. LR pixels."""

    side: int  # of the largest square tile, margins included; others hold no more pixels
    margin: int  # what a net looks at around a pixel
    multiple: int  # tiles begin at multiples of it, as the net's windows do in the whole image


@dataclass(frozen=True)
class Span:
    """One tile in one dimension: what is read, and which part of it is kept."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


@dataclass(frozen=True)
class Cut:
    """So many tiles of one size along a side of an image."""

    count: int
    size: int

    @property
    def work(self) -> int:
        """LR pixels computed along the side."""
        return self.count * self.size


def grid(height: int, width: int, tiling: Tiling) -> tuple[list[Span], list[Span]]:
    """Rows and columns of tiles: of what `tiling` allows, the cut that computes fewest pixels.

    Raises:
        ValueError: its tiles hold no more than their margins.
    """
    squares = [_cut(length, tiling.side, tiling) for length in (height, width)]
    pairs = [(down, across) for down, across in [squares] if down and across]
    for count in range(1, _MOST_ROWS + 1):
        down = _sized(height, count, tiling)
        across = _cut(width, tiling.side**2 // down.size, tiling)
        # A band as wide as the image is held as a whole: no higher than a square tile's.
        if across and (down.size <= tiling.side or across.count == 1):
            pairs.append((down, across))
    if not pairs:
        raise ValueError(f"a tile of {tiling.side} holds no more than margins of {tiling.margin}")
    down, across = min(pairs, key=lambda pair: pair[0].work * pair[1].work)
    return spans(height, down, tiling), spans(width, across, tiling)


def _cut(length: int, most: int, tiling: Tiling) -> Cut | None:
    """The fewest tiles of at most that size; None where they would hold only their margins."""
    if length <= most:
        return Cut(1, length)
    lost = 2 * tiling.margin + tiling.multiple - 1  # of a tile, where the next one begins
    gained = most // tiling.multiple * tiling.multiple - lost
    return _sized(length, -(-(length - lost) // gained), tiling) if gained > 0 else None


def _sized(length: int, count: int, tiling: Tiling) -> Cut:
    step = tiling.multiple
    size = -(-(length + (count - 1) * (2 * tiling.margin + step - 1)) // count)
    return Cut(count, min(length, -(-size // step) * step))


def spans(length: int, cut: Cut, tiling: Tiling) -> list[Span]:
    """Spans whose kept parts cover `length` once, cut in the middle of where two overlap.

    What is kept is at least the margin away from where a tile was cut, not from the image's end.
    """
    step, last = tiling.multiple, max(1, cut.count - 1)
    room = -(-length // step) * step - cut.size  # a net pads the last one to the size of the others
    starts = [max(0, room) * n // last // step * step for n in range(cut.count)]
    stops = [*(start + cut.size for start in starts[:-1]), length]
    joints = [(a + b) // 2 for a, b in zip(starts[1:], stops[:-1], strict=True)]
    return [
        Span(*ends) for ends in zip(starts, stops, [0, *joints], [*joints, length], strict=True)
    ]


def bands(
    session: Session, lr_HWC: ByteArray, tiling: Tiling, *, scale: int
) -> Iterator[ByteArray]:
    """The upscaled image in bands of full width, top to bottom, each (rows, S*W, 3)."""
    height, width = lr_HWC.shape[:2]
    rows_of_tiles, columns = grid(height, width, tiling)
    for down in rows_of_tiles:
        band = np.empty(((down.keep_to - down.keep_from) * scale, width * scale, 3), np.uint8)
        for across in columns:
            tile = lr_HWC[down.start : down.stop, across.start : across.stop]
            sr = upscale(session, tile, scale=scale, multiple=tiling.multiple)
            rows = slice(*((at - down.start) * scale for at in (down.keep_from, down.keep_to)))
            kept = slice(
                *((at - across.start) * scale for at in (across.keep_from, across.keep_to))
            )
            to = slice(across.keep_from * scale, across.keep_to * scale)
            band[:, to] = sr[rows, kept]
        yield band
