"""An image file's header: what it is and how large, before any pixel takes memory."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mipkd.core.errors import UsageError
from mipkd.core.folders import HEIF_HINT

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 500_000_000  # of a file; the largest sensors have 200e6
# Bytes that a pixel takes while it is read: as it is decoded, as RGB, and as an array; with alpha,
# or 16 bits a channel, once more each.
_BYTES_PER_PIXEL, _BYTES_PER_DEEP_PIXEL = 12, 24
# What no photo is packed to, looked at where there are so many that it matters.
_MANY_PIXELS, _MOST_PIXELS_A_BYTE = 2**25, 30
# Formats that only hold pixels: for PostScript Pillow starts a program. TGA has no sign of its own
# and comes last.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "HEIF", "GIF", "PPM"),
    *("JPEG2000", "PCX", "SGI", "ICO", "TGA"),
)
# Of what an ISO media file begins with: those of HEIC, and not of AVIF, which Pillow reads.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TILE_SIDES = (322, 323)  # TIFF tags: a tile may be larger than the image
# What Pillow was seen to raise, or can, on files with damaged bytes.
DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def open_image(path: Path) -> Image.Image:
    """An image file whose header was read, and no pixels; only of formats that hold nothing else.

    Raises:
        UsageError: it is HEIC, whose reader is not installed.
        OSError: the file cannot be read, or is of no such format; and what Pillow raises on damage.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # large photos are what we are for; `check_size` is our limit
    _register_heif(path)
    Image.init()
    return Image.open(path, formats=[one for one in _FORMATS if one in Image.OPEN])


def bytes_to_read(path: Path) -> int:
    """About the most memory that reading an image takes, as its header tells; 0 when it cannot be
    read."""
    with suppress(*DAMAGED, UsageError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(path) as image:
            return _bytes_to_read(image)
    return 0


def _bytes_to_read(image: Image.Image) -> int:
    plain = image.mode in ("1", "L", "P", "RGB", "YCbCr") and not image.has_transparency_data
    return image.width * image.height * (_BYTES_PER_PIXEL if plain else _BYTES_PER_DEEP_PIXEL)


def pixels_in(path: Path) -> int:
    """Height times width as the file's header tells; 0 when it cannot be read."""
    height, width = size_of(path)
    return height * width


def size_of(path: Path) -> tuple[int, int]:
    """Height and width as the file's header tells; zeros when it cannot be read."""
    with suppress(*DAMAGED, UsageError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(path) as image:
            return image.height, image.width
    return 0, 0


def _register_heif(path: Path) -> None:
    """Let Pillow read HEIC, as phones write it, where the file is such a one.

    Raises:
        UsageError: it is, and its reader is not installed.
    """
    try:
        with path.open("rb") as opened:
            head = opened.read(64)
    except OSError:
        return  # opening it as an image says so
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS or b"avif" in head:
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise UsageError(
            f"{path}: cannot be read as an image: it is HEIC, whose reader is not installed",
            hint=HEIF_HINT,
        ) from error
    register_heif_opener()


def check_size(image: Image.Image, path: Path) -> None:
    """Refuse more pixels than anyone has, or than a photo of so few bytes can have, before memory
    is taken."""
    pixels, size = image.width * image.height, f"{image.width}x{image.height} pixels"
    tags = getattr(image, "tag_v2", {})
    tile = math.prod(side for tag in _TILE_SIDES if isinstance(side := tags.get(tag, 1), int))
    if max(pixels, tile) > MOST_PIXELS:
        raise ValueError(f"{size} are more than {MOST_PIXELS // 10**6} megapixels; cut it in parts")
    stored = path.stat().st_size
    if max(pixels, tile) > max(_MANY_PIXELS, _MOST_PIXELS_A_BYTE * stored):
        raise ValueError(f"{size} in {stored} bytes are no photo; cut it in parts")


def check_whole(image: Image.Image, path: Path) -> None:
    """Refuse raw pixels that the file has no room for, at one bit each, before memory is taken.

    A damaged header may tell of billions: Pillow would fill gigabytes and then find the end.
    """
    raw = any(tile[0] == "raw" for tile in getattr(image, "tile", ()))
    if raw and image.width * image.height > 8 * path.stat().st_size:
        raise OSError("image file is truncated")
