"""Photos of 16 bits a channel as 8 bits: all bits read, and the range that the samples really span.

Cameras, scanners and microscopes store 10, 12 or 14 bits in words of 16 without scaling them.
Shapes: H W size, C channels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFile import _Tile

_FULL = 65535
# A photo whose brightest sample is under a sixteenth of the range would have 16 levels of 255 and
# be black to the eye; those of 13 bits and more look like dark photos, and are taken as such.
_NARROW = (255, 1023, 4095)
_BITS_PER_SAMPLE, _MAX_SAMPLE, _MAX_SAMPLE_FLOAT = 258, 281, 341  # TIFF tags
_PHOTOMETRIC, _PLANAR = 262, 284
# How Pillow names words of 16 bits, and the name by which it reads their lower bytes instead.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


def is_deep(image: Image.Image) -> bool:
    """Whether the samples of a file that was opened, and not loaded, have more than 8 bits."""
    _refuse_planes(image)
    return image.mode.startswith("I") or _lower_bytes(image) is not None


def _refuse_planes(image: Image.Image) -> None:
    """
    Raises:
        ValueError: colours of 16 bits lie one plane after the other, which Pillow misreads.
    """
    tags = getattr(image, "tag_v2", {})
    bits = _greatest(tags.get(_BITS_PER_SAMPLE))
    if tags.get(_PLANAR) == 2 and isinstance(bits, int) and bits > 8 and len(image.getbands()) > 1:
        raise ValueError("its 16-bit colours lie in planes; save it with interleaved colours")


def read_deep(image: Image.Image, path: Path) -> tuple[Image.Image, str]:
    """A photo of more than 8 bits a channel in 8, upright, and what was assumed about its range.

    Raises:
        ValueError: its samples have more than 16 bits.
    """
    from PIL import Image, ImageOps

    stated = _stated_maximum(image)
    orientation = image.getexif().get(0x0112)
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # white is 0
    values, alpha = _samples(image, path)
    eight, note = _to_eight_bits(values, stated)
    if inverted:
        eight = (255 - eight).astype(np.uint8)
    found = Image.fromarray(eight)
    if alpha is not None:
        found.putalpha(Image.fromarray(alpha))
    if orientation and image.getexif().get(0x0112):  # TIFFs are upright once they are loaded
        found.getexif()[0x0112] = orientation
        ImageOps.exif_transpose(found, in_place=True)
    return found, note


def _samples(
    image: Image.Image, path: Path
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8] | None]:
    """Samples of 16 bits, (H, W) or (H, W, 3), and alpha where there is some."""
    from PIL import Image

    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > _FULL:
            raise ValueError("its pixels have more than 16 bits; save it with 8 or 16")
        return grey.astype(np.uint16), None
    with Image.open(path) as again:  # Pillow keeps one byte a sample: read the other one too
        again.tile = _lower_bytes(again) or []
        low = np.asarray(again)
    high = np.asarray(image)
    values = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
    return values, high[..., 3] if high.shape[2] == 4 else None


def _lower_bytes(image: Image.Image) -> list[_Tile] | None:
    """The image's tiles, to be read by the lower byte of each sample; None for 8 bits."""
    tiles: list[_Tile] = getattr(image, "tile", [])
    swapped: list[_Tile] = []
    for tile in tiles:
        args = tile.args or ""
        first, *more = (args,) if isinstance(args, str) else args
        mode, _, word = str(first).partition(";")
        if mode not in ("RGB", "RGBA") or word not in _OTHER_BYTE:
            return None
        other = f"{mode};{_OTHER_BYTE[word]}"
        swapped.append(tile._replace(args=(other, *more) if more else other))
    return swapped or None


def _stated_maximum(image: Image.Image) -> int:
    """The greatest value that a sample can have as a TIFF's tags tell; 0 where they do not."""
    tags = getattr(image, "tag_v2", {})
    for tag in (_MAX_SAMPLE, _MAX_SAMPLE_FLOAT):
        if isinstance(stated := _greatest(tags.get(tag)), int | float) and 255 <= stated <= _FULL:
            return int(stated)
    bits = _greatest(tags.get(_BITS_PER_SAMPLE))
    return (1 << int(bits)) - 1 if isinstance(bits, int) and 8 < bits < 16 else 0


def _greatest(value: object) -> object:
    return max(value) if isinstance(value, tuple) and value else value


def _to_eight_bits(
    values: npt.NDArray[np.uint16], stated: int
) -> tuple[npt.NDArray[np.uint8], str]:
    """Samples over their range times 255, and what was assumed about the range."""
    highest, full, note = int(values.max()), _FULL, ""
    if highest <= stated:
        full = stated
    elif 0 < highest <= _NARROW[-1] and not _was_scaled(values):
        full = next(most for most in _NARROW if highest <= most)
        bits = full.bit_length()
        note = f"the brightest of its 16-bit samples is {highest}: read as {bits} bits"
    return np.rint(values * (255 / full)).astype(np.uint8), note


def _was_scaled(values: npt.NDArray[np.uint16]) -> bool:
    """Whether these are 8 bits that were spread over 16, so that the photo is truly dark."""
    return not (values % 257).any() or not (values % 256).any()
