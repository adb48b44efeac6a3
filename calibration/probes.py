"""Images on which a broken model shows itself: bright, dark, saturated, noise, a page.

Test sets hold few of these, and a net that fails on white alone would not be seen on them.
"""

from __future__ import annotations

import numpy as np

from calibration.pages import TO_JUDGE, page
from mipkd.core.images import ByteArray

SIDE = 64  # LR pixels
_EDGE = 16  # LR pixels a side of the part that is wholly white or black


def make_probes(photo_HWC: ByteArray) -> dict[str, ByteArray]:
    """LR images of (64, 64, 3) bytes by name, the first three made of a photo."""
    part = _cut(photo_HWC)
    bright, dark = 255 - (255 - part) // 4, part // 4
    bright[:_EDGE, :_EDGE], dark[:_EDGE, :_EDGE] = 255, 0
    pure = np.where(part > np.median(part, axis=(0, 1)), 255, 0).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, part.shape, dtype=np.uint8)
    return {
        "bright": bright,
        "dark": dark,
        "saturated": pure,
        "noise": noise,
        "page": page(SIDE, 0, 0, TO_JUDGE),
    }


def _cut(photo_HWC: ByteArray) -> ByteArray:
    """The middle of a photo, mirrored where it is smaller."""
    height, width = photo_HWC.shape[:2]
    top, left = max(0, height - SIDE) // 2, max(0, width - SIDE) // 2
    part = photo_HWC[top : top + SIDE, left : left + SIDE]
    more = ((0, SIDE - part.shape[0]), (0, SIDE - part.shape[1]), (0, 0))
    return np.pad(part, more, mode="symmetric")
