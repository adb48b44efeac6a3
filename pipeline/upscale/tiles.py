"""Images larger than memory: tiles with a margin, in bands from top to bottom.

Shapes: N batch, C channels, H W low-res size, S scale. Values: uint8 RGB, results
also uint16. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from targets.base import ByteArray, Session, upscale, upscale_to_16_bits


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


def bands(
    session: Session, lr_HWC: ByteArray, tiling: Tiling, *, scale: int, bits: int = 8
) -> Iterator[ByteArray]:
    """The upscaled image in bands of full width, top to bottom, each (rows, S*W, 3) of `bits`."""
    run, kind = (upscale_to_16_bits, np.uint16) if bits == 16 else (upscale, np.uint8)
    height, width = lr_HWC.shape[:2]
    columns = spans(width, tiling)
    for down in spans(height, tiling):
        band = np.empty(((down.keep_to - down.keep_from) * scale, width * scale, 3), kind)
        for across in columns:
            tile = lr_HWC[down.start : down.stop, across.start : across.stop]
            sr = run(session, tile, scale=scale, multiple=tiling.multiple)
            rows = slice(*((at - down.start) * scale for at in (down.keep_from, down.keep_to)))
            kept = slice(
                *((at - across.start) * scale for at in (across.keep_from, across.keep_to))
            )
            to = slice(across.keep_from * scale, across.keep_to * scale)
            band[:, to] = sr[rows, kept]
        yield band
