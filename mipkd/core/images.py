"""Read, write and resize images, and measure PSNR and SSIM as the SR papers do.

Shapes: H W size, C channels. Values: uint8 RGB. Only numpy is needed to import this file;
Pillow and SciPy are imported where they are used.
"""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from mipkd.core.deep_pixels import is_deep, read_deep
from mipkd.core.errors import UsageError
from mipkd.core.image_headers import DAMAGED, check_size, check_whole, open_image
from mipkd.core.names import printable

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

ByteArray = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float64]

UNSEEN_DB = 45.0  # PSNR of an error of 1.4 levels of 255: nobody sees what is lost above
# Where there is no truth it is taken to be so far from a net's image: published nets have 28 dB on
# photos at x4, 34 at x2. 0.1 dB lost is then noise of 46 dB, about UNSEEN_DB.
ASSUMED_TRUTH_DB = 30.0
PSNR_OF_EQUAL_DB = 100.0  # stands for infinity, which JSON cannot hold
SSIM_WINDOW = 11
_SSIM_C1, _SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_LEAST_LEFT = 0.3  # of an error: a sum of gains may foretell less than nothing
_BLOCK = 2**16  # values resized at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Reading:
    """The pixels of an image file, and what is said beside them."""

    rgb_HWC: ByteArray
    further_pages: int = 0  # of a TIFF or an animation, not read
    note: str = ""  # what was assumed about its range


def read_rgb(path: Path) -> ByteArray:
    """An image file as uint8 RGB (H, W, 3): upright, grey repeated, alpha laid over white.

    Raises:
        UsageError: the file cannot be read or decoded.
    """
    read = read_photo(path)
    if read.note:
        log.warning("%s: %s", printable(path), read.note)
    return read.rgb_HWC


def read_photo(path: Path) -> Reading:
    """An image file as `read_rgb` gives it, with what a caller may count.

    Raises:
        UsageError: the file cannot be read or decoded, or has more pixels than `MOST_PIXELS`.
    """
    from PIL import ImageOps, UnidentifiedImageError

    note = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(path) as image:
                check_whole(image, path)
                check_size(image, path)
                deep, pages = is_deep(image), _further_pages(image)
                image.load()
                if deep:
                    upright, note = read_deep(image, path)
                    return Reading(np.array(_as_rgb(upright)), pages, note)
                with suppress(*DAMAGED):  # damaged EXIF costs the orientation, not the photo
                    ImageOps.exif_transpose(image, in_place=True)
                return Reading(np.array(_as_rgb(image)), pages)
    except UnidentifiedImageError as error:
        why = "no image format that is known"
        raise UsageError(f"{path}: cannot be read as an image: {why}") from error
    except DAMAGED as error:
        reason = error.strerror if isinstance(error, OSError) else ""
        why = reason or str(error) or type(error).__name__
        raise UsageError(f"{path}: cannot be read as an image: {why}") from error


def _further_pages(image: Image.Image) -> int:
    """Pages or frames after the first, which alone is read; a phone's second image in a JPEG, a
    preview or a map of depth, is none."""
    if image.format == "MPO":
        return 0
    with suppress(*DAMAGED):
        return max(0, getattr(image, "n_frames", 1) - 1)
    return 0


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return image.convert("RGB")


def write_png(path: Path, image_HWC: ByteArray) -> None:
    """Write an image as PNG; the folder must be there."""
    from PIL import Image

    Image.fromarray(image_HWC).save(path, format="PNG")


def crop_to_multiple(image_HWC: ByteArray, scale: int) -> ByteArray:
    """The top left part whose height and width are multiples of `scale`."""
    height, width = image_HWC.shape[:2]
    return image_HWC[: height - height % scale, : width - width % scale]


def downscale(image_HWC: ByteArray, scale: int) -> ByteArray:
    """The LR image that MATLAB's `imresize(image, 1 / scale)` makes, to the last bit."""
    height, width = image_HWC.shape[:2]
    return resize_bicubic(
        image_HWC, (math.ceil(height / scale), math.ceil(width / scale)), 1 / scale
    )


def resize_bicubic(
    image_HWC: ByteArray, size: tuple[int, int], scale: float | None = None
) -> ByteArray:
    """MATLAB's bicubic: a = -0.5, antialiased when shrinking, symmetric edges, rows first,
    rounded to uint8 after each dimension.

    `scale` is output over input; by default each dimension's own ratio of sizes.
    """
    rows = _resize_rows(image_HWC, size[0], scale or size[0] / image_HWC.shape[0])
    columns = np.ascontiguousarray(rows.transpose(1, 0, 2))
    resized = _resize_rows(columns, size[1], scale or size[1] / image_HWC.shape[1])
    return np.ascontiguousarray(resized.transpose(1, 0, 2))


def _resize_rows(image_HWC: ByteArray, rows: int, scale: float) -> ByteArray:
    indices, weights = _taps(image_HWC.shape[0], rows, scale)
    lines = image_HWC.reshape(image_HWC.shape[0], -1)
    resized = np.empty((rows, lines.shape[1]), np.uint8)
    step = max(1, _BLOCK // lines.shape[1])
    for start in range(0, rows, step):
        block = slice(start, start + step)
        total = np.zeros(resized[block].shape)
        # Tap by tap and not by a matrix product: BLAS may add in another order on another
        # processor, and a sum just at a half would then round to another byte.
        for tap in range(indices.shape[1]):
            total += weights[block, tap, None] * lines[indices[block, tap]]
        # MATLAB rounds halves away from zero, numpy to even.
        resized[block] = np.floor(np.clip(total, 0, 255, out=total) + 0.5)
    return resized.reshape(rows, *image_HWC.shape[1:])


def _taps(length: int, out: int, scale: float) -> tuple[npt.NDArray[np.int64], Plane]:
    """For each output row the input rows it reads and their weights, both (out, taps)."""
    shrink = min(scale, 1.0)
    width = 4 / shrink
    centre = (np.arange(out) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2).astype(np.int64)
    indices = first[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * _cubic(shrink * (centre[:, None] - indices))
    weights /= weights.sum(axis=1, keepdims=True)
    folded = np.mod(indices, 2 * length)
    mirrored = np.where(folded < length, folded, 2 * length - 1 - folded)
    used = np.any(weights != 0, axis=0)
    return mirrored[:, used], weights[:, used]


def _cubic(x: Plane) -> Plane:
    near, far = np.abs(x), np.abs(x) ** 2
    inner = 1.5 * near * far - 2.5 * far + 1
    outer = -0.5 * near * far + 2.5 * far - 4 * near + 2
    return cast("Plane", np.where(near <= 1, inner, np.where(near <= 2, outer, 0.0)))


def luma(image_HWC: ByteArray) -> Plane:
    """Y of YCbCr (BT.601, 16 to 235) as float64 (H, W), not rounded."""
    return cast("Plane", image_HWC @ np.array([65.481, 128.553, 24.966]) / 255 + 16)


def psnr_y(a_HWC: ByteArray, b_HWC: ByteArray, *, border: int) -> float:
    """PSNR of the Y channels in dB, `border` pixels cropped; equal images give 100.

    Raises:
        UsageError: sizes differ, or nothing is left inside the border.
    """
    a, b = _planes(a_HWC, b_HWC, border, least=1)
    return psnr_of(float(np.mean((a - b) ** 2)))


def psnr_of(mse: float) -> float:
    """PSNR in dB of a mean squared error in levels of 255; no error gives 100."""
    return min(PSNR_OF_EQUAL_DB, 10 * math.log10(255**2 / mse)) if mse else PSNR_OF_EQUAL_DB


def mse_of(psnr_db: float) -> float:
    """The mean squared error in levels of 255 that has a PSNR in dB."""
    return float(255**2 / 10 ** (psnr_db / 10))


def psnr_lost(added_mse: Plane | float, mse: Plane) -> Plane:
    """What more squared error costs, in dB; less costs below 0, and at most 5 dB are won."""
    return np.asarray(10 * np.log10(np.maximum(1 + added_mse / mse, _LEAST_LEFT)))


def ssim_y(a_HWC: ByteArray, b_HWC: ByteArray, *, border: int) -> float:
    """SSIM of the Y channels as Wang et al. (2004): 11x11 Gaussian window, sigma 1.5.

    Raises:
        UsageError: sizes differ, or the image is smaller than the window.
    """
    similarity, _ = compare_structure(*_planes(a_HWC, b_HWC, border, least=SSIM_WINDOW))
    return float(similarity.mean())


def compare_structure(a_HW: Plane, b_HW: Plane) -> tuple[Plane, Plane]:
    """SSIM, and its part of contrast and structure, wherever the whole window lies inside."""
    mean_a, mean_b, aa, bb, ab = (
        _blur_ssim(plane) for plane in (a_HW, b_HW, a_HW * a_HW, b_HW * b_HW, a_HW * b_HW)
    )
    squares = mean_a**2 + mean_b**2
    structure = (2 * (ab - mean_a * mean_b) + _SSIM_C2) / (aa + bb - squares + _SSIM_C2)
    similarity = structure * (2 * mean_a * mean_b + _SSIM_C1) / (squares + _SSIM_C1)
    inside = (slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2)),) * 2
    return similarity[inside], structure[inside]


def _blur_ssim(plane_HW: Plane) -> Plane:
    """The Gaussian mean around each pixel."""
    from scipy.ndimage import gaussian_filter

    blurred: Plane = gaussian_filter(plane_HW, sigma=1.5, radius=SSIM_WINDOW // 2)
    return blurred


def shift_rgb(a_HWC: ByteArray, b_HWC: ByteArray, *, border: int) -> tuple[float, float, float]:
    """How much brighter each channel of the first is, in levels: the mean inside the border.

    PSNR-Y hardly sees a tint: a level of blue is a tenth of a level of Y.

    Raises:
        UsageError: sizes differ, or nothing is left inside the border.
    """
    a, b = crop_border(a_HWC, b_HWC, border, least=1)
    red, green, blue = a.mean((0, 1)) - b.mean((0, 1))
    return float(red), float(green), float(blue)


def _planes(a_HWC: ByteArray, b_HWC: ByteArray, border: int, least: int) -> tuple[Plane, Plane]:
    a, b = crop_border(a_HWC, b_HWC, border, least)
    return luma(a), luma(b)


def crop_border(
    a_HWC: ByteArray, b_HWC: ByteArray, border: int, least: int
) -> tuple[ByteArray, ByteArray]:
    """Both images without `border` pixels at each side.

    Raises:
        UsageError: sizes differ, or less than `least` pixels a side are left.
    """
    if a_HWC.shape != b_HWC.shape:
        sizes = " and ".join(f"{i.shape[1]}x{i.shape[0]}" for i in (a_HWC, b_HWC))
        raise UsageError(f"images differ in size: {sizes}")
    height, width = a_HWC.shape[:2]
    if min(height, width) < 2 * border + least:
        raise UsageError(
            f"image of {width}x{height} is too small to be measured with a border of {border}",
            hint=f"at least {2 * border + least} pixels a side are needed",
        )
    inside = (slice(border, height - border), slice(border, width - border))
    return a_HWC[inside], b_HWC[inside]
