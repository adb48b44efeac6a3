"""RGB to and from 8-bit YUV in planes, as cameras give it and video files hold it.

Shapes: H W pixels, h w chroma samples. Values: uint8. Matrices and ranges after ITU-R BT.601-7 and
BT.709-6; where chroma samples lie, after the notes on 4:2:0 of the mjpegtools project (y4m). Needs
numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mipkd.core.images import ByteArray

Plane = npt.NDArray[np.float32]

# Share of red and of blue in luma.
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


@dataclass(frozen=True)
class YuvFormat:
    """How a picture lies in three planes: Y, then Cb, then Cr."""

    step: tuple[int, int]  # rows and columns of luma for a chroma sample, each 1 or 2
    # Whether chroma samples lie on rows and columns of luma; else half way between two.
    cosited: tuple[bool, bool] = (False, False)
    matrix: str = "bt709"  # of MATRICES
    full_range: bool = False  # luma 0 to 255; else 16 to 235, chroma 16 to 240

    def shapes(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of luma and of each chroma plane of a picture of height, width."""
        chroma = tuple(-(-side // step) for side, step in zip(size, self.step, strict=True))
        return size, (chroma[0], chroma[1])

    def count_bytes(self, size: tuple[int, int]) -> int:
        """Of one picture of height, width."""
        luma, chroma = self.shapes(size)
        return luma[0] * luma[1] + 2 * chroma[0] * chroma[1]

    def __str__(self) -> str:
        kind = {(2, 2): "4:2:0", (1, 2): "4:2:2", (1, 1): "4:4:4"}[self.step]
        matrix = f"{self.matrix[:2].upper()}.{self.matrix[2:]}"
        return f"YUV {kind}, {matrix}, {'full' if self.full_range else 'limited'} range"


def rgb_of_yuv(yuv: bytes | ByteArray, size: tuple[int, int], kind: YuvFormat) -> ByteArray:
    """The picture of height, width that lies in `yuv`, RGB of shape (H, W, 3)."""
    flat = np.frombuffer(yuv, np.uint8)
    luma, chroma = kind.shapes(size)
    ends = np.cumsum([luma[0] * luma[1], chroma[0] * chroma[1]])
    parts = zip(np.split(flat, ends), (luma, chroma, chroma), strict=True)
    y, cb, cr = (part.reshape(shape).astype(np.float32) for part, shape in parts)
    floor, luma_levels, chroma_levels = _levels(kind)
    red, blue = MATRICES[kind.matrix]
    y = (y - floor) * np.float32(255 / luma_levels)
    # Chroma is the difference to luma over what it is at most.
    to_255 = np.float32(255 / chroma_levels)
    less_blue, less_red = (
        _upsample((plane - np.float32(128)) * to_255 * np.float32(2 * (1 - share)), size, kind)
        for plane, share in ((cb, blue), (cr, red))
    )
    green = y - (red * less_red + blue * less_blue) / np.float32(1 - red - blue)
    rgb_HWC = np.empty((*size, 3), np.uint8)
    for channel, plane in enumerate((y + less_red, green, y + less_blue)):
        rgb_HWC[..., channel] = _as_bytes(plane)
    return rgb_HWC


def yuv_of_rgb(rgb_HWC: ByteArray, kind: YuvFormat) -> ByteArray:
    """The bytes of a picture's three planes, one after another."""
    size = (rgb_HWC.shape[0], rgb_HWC.shape[1])
    luma, chroma = kind.shapes(size)
    floor, luma_levels, chroma_levels = _levels(kind)
    red, blue = MATRICES[kind.matrix]
    r, g, b = (rgb_HWC[..., channel].astype(np.float32) for channel in range(3))
    y = np.float32(red) * r
    y += np.float32(blue) * b
    g *= np.float32(1 - red - blue)
    y += g
    yuv = np.empty(kind.count_bytes(size), np.uint8)
    first, length = luma[0] * luma[1], chroma[0] * chroma[1]
    for plane, share, start in ((b, blue, first), (r, red, first + length)):
        plane -= y
        less = _downsample(plane, kind)
        less *= np.float32(chroma_levels / 255 / (2 * (1 - share)))
        less += np.float32(128)
        yuv[start : start + length] = _as_bytes(less).ravel()
    y *= np.float32(luma_levels / 255)
    y += floor
    yuv[:first] = _as_bytes(y).ravel()
    return yuv


def _levels(kind: YuvFormat) -> tuple[np.float32, float, float]:
    """The level of black; how many levels luma and chroma span."""
    if kind.full_range:
        return np.float32(0), 255.0, 255.0
    return np.float32(16), 219.0, 224.0


def _as_bytes(plane: Plane) -> ByteArray:
    """Rounded and clipped; `plane` is used up."""
    np.rint(plane, out=plane)
    np.clip(plane, 0, 255, out=plane)
    return plane.astype(np.uint8)


def _downsample(plane: Plane, kind: YuvFormat) -> Plane:
    """Chroma at its own places: the mean of two where it lies between them, else 1 2 1 over 4."""
    for axis in (0, 1):
        if kind.step[axis] == 1:
            continue
        ends = [(0, 0), (0, 0)]
        ends[axis] = (int(kind.cosited[axis]), plane.shape[axis] % 2)
        whole = np.pad(plane, ends, mode="edge") if ends != [(0, 0), (0, 0)] else plane
        lines = np.moveaxis(whole, axis, 0)
        if kind.cosited[axis]:
            made = (lines[:-2:2] + lines[2::2]) * np.float32(0.25)
            made += lines[1:-1:2] * np.float32(0.5)
        else:
            made = (lines[::2] + lines[1::2]) * np.float32(0.5)
        plane = np.moveaxis(made, 0, axis)
    return plane.copy() if kind.step == (1, 1) else plane


def _upsample(plane: Plane, size: tuple[int, int], kind: YuvFormat) -> Plane:
    """Chroma at the pixels, linear between the samples around."""
    for axis in (0, 1):
        if kind.step[axis] == 1:
            continue
        lines = np.moveaxis(plane, axis, 0)
        after = np.concatenate([lines[1:], lines[-1:]])
        if kind.cosited[axis]:
            pairs = [lines, (lines + after) * np.float32(0.5)]
        else:
            before = np.concatenate([lines[:1], lines[:-1]])
            near = lines * np.float32(0.75)
            pairs = [near + before * np.float32(0.25), near + after * np.float32(0.25)]
        made = np.stack(pairs, axis=1).reshape(-1, lines.shape[1])[: size[axis]]
        plane = np.moveaxis(made, 0, axis)
    return plane
