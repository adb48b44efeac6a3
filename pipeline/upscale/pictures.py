"""Pictures as users have them: alpha, grey, orientation and profile kept; what is lost is told."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mipkd.core.deep_pixels import is_deep, read_deep
from mipkd.core.errors import UsageError
from mipkd.core.image_headers import bytes_to_read, open_image, size_of
from mipkd.core.images import ByteArray, read_rgb
from pipeline.upscale.png import profile_chunk

if TYPE_CHECKING:
    from PIL import Image

# EXIF tags: orientation, and what a TIFF says of how its pixels are stored.
_OF_THE_PIXELS = (
    *(0x0112, *range(254, 260), 262, 263, 266, *range(277, 280), 273, 284, 317, 320, 332, 334),
    *(*range(322, 326), 338, 339, 34675),
)
_KNOWN = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")


@dataclass(frozen=True)
class Picture:
    """A picture to be upscaled, upright."""

    rgb_HWC: ByteArray
    alpha_HW1: ByteArray | None
    grey: bool
    profile: bytes = b""  # of its colours, ICC
    exif: bytes = b""  # without the orientation
    lost: tuple[str, ...] = ()  # what the file held and the picture does not, in words

    @property
    def channels(self) -> int:
        """Number of output channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
        return (1 if self.grey else 3) + (self.alpha_HW1 is not None)

    @property
    def chunks(self) -> dict[str, bytes]:
        """Profile and EXIF for a PNG, in the order that PNG wants."""
        found = {"iCCP": profile_chunk(self.profile)} if self.profile else {}
        return found | ({"eXIf": self.exif.removeprefix(b"Exif\0\0")} if self.exif else {})


def read_picture(file: Path, memory_bytes: int | None = None) -> Picture:
    """A picture in 8 bits a channel, if reading it takes no more than `memory_bytes`.

    Raises:
        UsageError: it cannot be read, or holds what would be lost without a trace, such as frames.
    """
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
    read_rgb(file)  # says what is wrong with a damaged file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(file) as image:
            if why := _refuse(image):
                raise UsageError(f"{file}: {why}", hint="convert it to RGB first")
            upright, lost = _as_8_bits(file, image)
            # A profile of inks describes no RGB.
            profile = b"" if image.mode == "CMYK" else image.info.get("icc_profile") or b""
            exif, grey = _exif(image), upright.mode in ("1", "L", "LA")
            if not upright.has_transparency_data:
                plain = np.array(upright.convert("RGB"))
                return Picture(plain, None, grey, profile, exif, lost)
            rgba = np.array(upright.convert("RGBA"))
    plain, alpha = np.ascontiguousarray(rgba[..., :3]), rgba[..., 3:]
    return Picture(plain, alpha, grey, profile, exif, lost)


def _as_8_bits(file: Path, image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The opened picture upright, of 8 bits a channel and no inks, and what that costs."""
    from PIL import ImageOps

    deep = is_deep(image)
    was_deep = deep or (image.format == "PNG" and _png_depth(file) == 16)
    lost = ["16 bits a channel are read as 8: finer steps are lost"] if was_deep else []
    image.load()
    if deep:
        upright, note = read_deep(image, file)
        return upright, (*lost, note) if note else tuple(lost)
    with suppress(Exception):  # damaged EXIF costs the orientation, as in read_rgb
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "CMYK":
        image, how = _read_inks(image)
        lost.append(f"CMYK is read as RGB, {how}: colours outside of sRGB are lost")
    return image, tuple(lost)


def _read_inks(image: Image.Image) -> tuple[Image.Image, str]:
    """CMYK as sRGB, by its profile where it has one that can be used, and how."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if profile:
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            found = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            assert found is not None, "not in place"
            return found, "by its profile"
    return image.convert("RGB"), "by a plain formula for want of a profile"


def join_alpha(picture: Picture, rgb_HWC: ByteArray, alpha_HW1: ByteArray | None) -> ByteArray:
    """Upscaled colour, and alpha of the same rows, in the picture's own channels; alpha of 8 bits
    is spread over the 16 of colour that has so many."""
    if picture.grey:
        rgb_HWC = np.rint(rgb_HWC.mean(axis=2, keepdims=True)).astype(rgb_HWC.dtype)
    if alpha_HW1 is None:
        return rgb_HWC
    spread = alpha_HW1.astype(rgb_HWC.dtype) * (257 if rgb_HWC.dtype == np.uint16 else 1)
    return np.concatenate((rgb_HWC, spread), axis=2)


def _refuse(image: Image.Image) -> str:
    # A phone's second image in a JPEG, a map of light or depth, is not the picture.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        return f"has {frames} frames, and only one would be kept"
    if image.mode not in _KNOWN and not is_deep(image):
        return f"has pixels of mode {image.mode}, which have no plain counterpart in RGB"
    return ""


def _png_depth(file: Path) -> int:
    with file.open("rb") as opened:
        return opened.read(25)[24]


def _exif(image: Image.Image) -> bytes:
    """Its EXIF without what describes its own pixels; "" where there is none, or a damaged one."""
    with suppress(Exception):
        exif = image.getexif()
        for tag in _OF_THE_PIXELS:
            exif.pop(tag, None)
        if len(exif):
            return exif.tobytes()
    return b""
