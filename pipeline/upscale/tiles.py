"""Images larger than memory: tiles with a margin, in bands from top to bottom.

Shapes: N batch, C channels, H W low-res size, S scale. Values: uint8 RGB, results
also uint16. Needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from targets._images import upscale, upscale_to_16_bits
from targets._tiles import Tiling, spans
from targets.base import ByteArray, Session


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
