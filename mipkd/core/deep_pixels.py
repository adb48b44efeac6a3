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
# TIFF tags
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _PLANAR = 258, 262, 277, 284
_MAX_SAMPLE, _MAX_SAMPLE_FLOAT = 281, 341
_MIN_IS_WHITE, _SEPARATE = 0, 2  # values of two of them
_GREY_ALPHA = "LA;16B"
# How Pillow names words of 16 bits, and the name by which it reads their lower bytes instead.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


def is_deep(image: Image.Image) -> bool:
    """Whether the samples of a file that was opened, and not loaded, have more than 8 bits.

    Raises:
        ValueError: they have, in planes, which Pillow takes for pixels of 8 bits.
    """
    tags = getattr(image, "tag_v2", {})
    bits, planar = _greatest(tags.get(_BITS_PER_SAMPLE)), tags.get(_PLANAR) == _SEPARATE
    if planar and isinstance(bits, int) and bits > 8 and tags.get(_SAMPLES_PER_PIXEL, 1) > 1:
        raise ValueError(f"its {bits}-bit channels lie in planes; save it chunky (interleaved)")
    return image.mode.startswith("I") or _is_grey_alpha(image) or _lower_bytes(image) is not None


def read_deep(image: Image.Image, path: Path) -> tuple[Image.Image, str]:
    """A photo of more than 8 bits a channel in 8, upright, and what was assumed about its range.

    Raises:
        ValueError: its samples have more than 16 bits.
    """
    from PIL import Image, ImageOps

    stated = _stated_maximum(image)
    orientation = image.getexif().get(0x0112)
    inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _MIN_IS_WHITE
    values, alpha = _samples(image, path)
    full, note = _find_range(values, stated)
    eight = _to_eight_bits(values, full)
    found = Image.fromarray(255 - eight if inverted else eight)
    if alpha is not None:
        found.putalpha(
            Image.fromarray(_to_eight_bits(alpha, full if alpha.max() <= full else _FULL))
        )
    if orientation and image.getexif().get(0x0112):  # TIFFs are upright once they are loaded
        found.getexif()[0x0112] = orientation
        ImageOps.exif_transpose(found, in_place=True)
    return found, note


def _samples(
    image: Image.Image, path: Path
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16] | None]:
    """Samples of 16 bits, (H, W) or (H, W, 3), and alpha where there is some."""
    from PIL import Image

    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > _FULL:
            raise ValueError("its pixels have more than 16 bits; save it with 8 or 16")
        return grey.astype(np.uint16), None
    # Pillow keeps one byte a sample: read the other one too.
    with Image.open(path, formats=[image.format or ""]) as again:
        if _is_grey_alpha(again):
            return _grey_and_alpha(again)
        again.tile = _lower_bytes(again) or []
        low = np.asarray(again)
    high = np.asarray(image)
    values = high.astype(np.uint16) << 8 | low
    return values[..., :3], values[..., 3] if values.shape[2] == 4 else None


def _grey_and_alpha(
    opened: Image.Image,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Both of a PNG: four bytes a pixel, which are read as if they were four channels."""
    opened.tile = [tile._replace(args="RGBA") for tile in getattr(opened, "tile", [])]  # type: ignore[attr-defined]
    both = np.asarray(opened.convert("RGBA")).astype(np.uint16)
    values = (both[..., ::2] << 8 | both[..., 1::2]).astype(np.uint16)
    return values[..., 0], values[..., 1]


def _is_grey_alpha(image: Image.Image) -> bool:
    return any(tile.args == _GREY_ALPHA for tile in getattr(image, "tile", []))


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


def _find_range(values: npt.NDArray[np.uint16], stated: int) -> tuple[int, str]:
    """The greatest value that samples can have, and what was assumed about it."""
    highest = int(values.max())
    if highest <= stated:
        return stated, ""
    if not 0 < highest <= _NARROW[-1] or _was_scaled(values):
        return _FULL, ""
    full = next(most for most in _NARROW if highest <= most)
    bits = full.bit_length()
    return full, f"the brightest of its 16-bit samples is {highest}: read as {bits} bits"


def _to_eight_bits(values: npt.NDArray[np.uint16], full: int) -> npt.NDArray[np.uint8]:
    eight: npt.NDArray[np.uint8] = np.rint(values * (255 / full)).astype(np.uint8)
    return eight


def _was_scaled(values: npt.NDArray[np.uint16]) -> bool:
    """Whether these are 8 bits that were spread over 16, so that the photo is truly dark."""
    return not (values % 257).any() or not (values % 256).any()
