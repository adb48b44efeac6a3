"""Pictures as users have them: alpha, grey, orientation and profile kept, or clearly refused."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mipkd.core.deep_pixels import is_deep
from mipkd.core.errors import UsageError
from mipkd.core.image_headers import bytes_to_read, open_image, size_of
from mipkd.core.images import ByteArray, read_rgb
from pipeline.upscale.png import profile_chunk

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
_KNOWN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")


@dataclass(frozen=True)
class Picture:
    """A picture to be upscaled, upright."""

    rgb_HWC: ByteArray
    alpha_HW1: ByteArray | None
    grey: bool
    chunks: dict[str, bytes]  # of a PNG: colour profile and EXIF

    @property
    def channels(self) -> int:
        """Number of output channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
        return (1 if self.grey else 3) + (self.alpha_HW1 is not None)


def read_picture(file: Path, memory_bytes: int | None = None) -> Picture:
    """A picture of 8 bits a channel, if reading it takes no more than `memory_bytes`.

    Raises:
        UsageError: it cannot be read, or holds what would be lost: 16 bits, CMYK, frames.
    """
    from PIL import ImageOps

    if not file.is_file():
        raise UsageError(f"{file}: no such file", hint="give images, or folders of images")
    needed = bytes_to_read(file)
    if memory_bytes is not None and needed > memory_bytes:
        height, width = size_of(file)
        raise UsageError(
            f"{file}: reading {width}x{height} pixels takes {needed / 2**30:.1f} GiB, "
            f"{max(0, memory_bytes) / 2**30:.1f} GiB are left of --memory",
            hint="raise --memory, or cut the picture",
        )
    plain = read_rgb(file)  # says what is wrong with a damaged file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(file) as image:
            if why := _refuse(file, image):
                raise UsageError(f"{file}: {why}", hint="convert it to 8 bits RGB first")
            image.load()
            with suppress(Exception):  # damaged EXIF costs the orientation, as in read_rgb
                ImageOps.exif_transpose(image, in_place=True)
            chunks, grey = _chunks(image), image.mode in ("1", "L", "LA")
            if not image.has_transparency_data:
                return Picture(plain, None, grey, chunks)
            rgba = np.array(image.convert("RGBA"))
    return Picture(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3:], grey, chunks)


def join_alpha(picture: Picture, rgb_HWC: ByteArray, alpha_HW1: ByteArray | None) -> ByteArray:
    """Upscaled colour, and alpha of the same rows, in the picture's own channels."""
    if picture.grey:
        rgb_HWC = np.rint(rgb_HWC.mean(axis=2, keepdims=True)).astype(np.uint8)
    return rgb_HWC if alpha_HW1 is None else np.concatenate((rgb_HWC, alpha_HW1), axis=2)


def _refuse(file: Path, image: Image.Image) -> str:
    # A phone's second image in a JPEG, a map of light or depth, is not the picture.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        return f"has {frames} frames, and only one would be kept"
    if image.mode not in _KNOWN:
        return f"has pixels of mode {image.mode}, which would be lost in 8 bits RGB"
    if is_deep(image) or (image.format == "PNG" and _png_depth(file) == 16):
        return "has 16 bits a channel, half of which would be lost"
    return ""


def _png_depth(file: Path) -> int:
    with file.open("rb") as opened:
        return opened.read(25)[24]


def _chunks(image: Image.Image) -> dict[str, bytes]:
    """In the order that PNG wants: the profile before the pixels; EXIF without orientation."""
    found = {}
    if profile := image.info.get("icc_profile"):
        found["iCCP"] = profile_chunk(profile)
    with suppress(Exception):
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
        if len(exif):
            found["eXIf"] = exif.tobytes().removeprefix(b"Exif\0\0")
    return found
