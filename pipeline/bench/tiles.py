"""Images larger than memory: tiles with a margin, in bands from top to bottom.

Shapes: N batch, C channels, H W low-res size, S scale. Values: uint8 RGB. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from targets.base import ByteArray, Session, upscale


@dataclass(frozen=True)
class Tiling:
    """How an image is cut. LR pixels."""

    side: int  # of a tile, margins included
    margin: int  # what a net looks at around a pixel
    multiple: int  # tiles begin at multiples of it, as the net's windows do in the whole image


@dataclass(frozen=True)
class Span:
    """One tile in one dimension: what is read, and which part of it is kept."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


def spans(length: int, tiling: Tiling) -> list[Span]:
    """Spans whose kept parts cover `length` once, of one size as far as `multiple` lets them be.

    What is kept is at least the margin away from where the tile was cut, not from the image's end.
    """
    side, margin, step = tiling.side, tiling.margin, tiling.multiple
    assert side > 2 * margin + step, "a tile holds more than its margins"
    found, done = list[Span](), 0
    while done < length:
        start = max(0, done - margin) // step * step
        if start + side >= length:
            start = max(0, length - side) // step * step
            found.append(Span(start, length, done, length))
            break
        stop = start + side // step * step
        found.append(Span(start, stop, done, stop - margin))
        done = stop - margin
    return found


def bands(
    session: Session, lr_HWC: ByteArray, tiling: Tiling, *, scale: int
) -> Iterator[ByteArray]:
    """The upscaled image in bands of full width, top to bottom, each (rows, S*W, 3)."""
    height, width = lr_HWC.shape[:2]
    columns = spans(width, tiling)
    for down in spans(height, tiling):
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
