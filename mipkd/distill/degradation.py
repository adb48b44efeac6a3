"""LR images as cameras and the web make them: blurred, resized, noisy and compressed, twice.

The second-order chain of Real-ESRGAN (Wang et al., ICCVW 2021), whose ranges are the defaults; its
sinc filters and its sharpening of the truth are left out. What an image becomes follows from its
pixels and the seed alone, so that a repeated or resumed run sees the same.

Shapes: H W size, C channels. Values: uint8 RGB.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mipkd.core.images import ByteArray, luma
from mipkd.distill.pair_reader import Degrade

_ISOTROPIC = 0.6  # chance of a blur that is alike in all directions
_GAUSSIAN = 0.5  # chance of Gaussian noise, else Poisson's
_POISSON = 0.1  # of a sigma in levels: how strong Poisson's noise is for its scale
_GREY = 0.4  # chance that noise is the same in all channels
_LEAST_SIDE = 8  # pixels that an image keeps on the way
_LEAST_SIGMA = 0.05  # pixels: a narrower blur changes nothing

Sigma = Annotated[float, Field(ge=0, le=20)]
Factor = Annotated[float, Field(gt=0, le=4)]
Levels = Annotated[float, Field(ge=0, le=255)]
Quality = Annotated[int, Field(ge=1, le=100)]


class DegradationConfig(BaseModel):
    """How LR is made of HR photos that have none of their own; each is drawn between two ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # "off": MATLAB's bicubic. "second-order": all of it twice, weaker the second time.
    chain: Literal["off", "first-order", "second-order"] = "off"
    blur: tuple[Sigma, Sigma] = (0.2, 3.0)  # sigma in HR pixels, along each axis; 0 for none
    resize: tuple[Factor, Factor] = (0.15, 1.5)  # of the HR size, on the way; 1 for none
    noise: tuple[Levels, Levels] = (1.0, 30.0)  # sigma in levels of 255; 0 for none
    jpeg: tuple[Quality, Quality] = (30, 95)  # quality; 100 for none
    seed: int = Field(0, ge=0)

    @field_validator("blur", "resize", "noise", "jpeg")
    @classmethod
    def _are_ordered(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] > ends[1]:
            raise ValueError(f"the lower end comes first, got {list(ends)}")
        return ends

    def for_scale(self, scale: int) -> Degrade | None:
        """What makes LR of HR images; None for bicubic."""
        return None if self.chain == "off" else lambda hr_HWC: degrade(hr_HWC, scale, self)


BICUBIC = DegradationConfig()


@dataclass(frozen=True)
class _Pass:
    """One time through blur, resize, noise and JPEG: the ends of what is drawn, and chances."""

    blur: tuple[float, float]
    blurs: float
    resize: tuple[float, float]
    shrinks: float
    grows: float
    noise: tuple[float, float]
    jpeg: tuple[int, int]


def _passes(config: DegradationConfig) -> list[_Pass]:
    """By the chances of Real-ESRGAN; its second ranges are these parts of its first."""
    (thin, wide), (small, large), (weak, strong) = config.blur, config.resize, config.noise
    first = _Pass(config.blur, 1.0, config.resize, 0.7, 0.2, config.noise, config.jpeg)
    second = _Pass(
        blur=(min(thin, wide / 2), wide / 2),
        blurs=0.8,
        resize=(min(2 * small, 1.0), 1 + 0.4 * (large - 1)) if small < 1 else (small, large),
        shrinks=0.4,
        grows=0.3,
        noise=(min(weak, strong * 5 / 6), strong * 5 / 6),
        jpeg=config.jpeg,
    )
    return [first, second] if config.chain == "second-order" else [first]


def degrade(hr_HWC: ByteArray, scale: int, config: DegradationConfig) -> ByteArray:
    """The LR image of an HR one whose sides are multiples of the scale."""
    height, width = (side // scale for side in hr_HWC.shape[:2])
    digest = hashlib.sha256(hr_HWC.tobytes()).digest()
    rng = np.random.default_rng([config.seed, int.from_bytes(digest[:16], "big")])
    image, passes = hr_HWC, _passes(config)
    for number, one in enumerate(passes):
        base = (height, width) if number else hr_HWC.shape[:2]  # the second starts at the LR size
        image = _blur(image, one, rng)
        image = _resize(image, _draw_size(base, one, rng), rng)
        image = _add_noise(image, one.noise, rng)
        if number + 1 < len(passes):
            image = _compress(image, one.jpeg, rng)
    if rng.random() < 0.5:  # the last two steps in either order
        return _resize(_compress(image, passes[-1].jpeg, rng), (height, width), rng)
    return _compress(_resize(image, (height, width), rng), passes[-1].jpeg, rng)


def _blur(image_HWC: ByteArray, one: _Pass, rng: np.random.Generator) -> ByteArray:
    """A Gaussian blur, of two widths and turned, or alike in all directions."""
    along, across = rng.uniform(*one.blur, size=2)
    angle = rng.uniform(0, math.pi)
    across = along if rng.random() < _ISOTROPIC else across
    if rng.random() >= one.blurs or max(along, across) < _LEAST_SIGMA:
        return image_HWC
    from scipy.signal import oaconvolve

    kernel = _gaussian(max(along, _LEAST_SIGMA), max(across, _LEAST_SIGMA), angle)
    edge = len(kernel) // 2
    padded = np.pad(image_HWC.astype(np.float32), ((edge, edge), (edge, edge), (0, 0)), "symmetric")
    return _as_bytes(oaconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)))


def _gaussian(along: float, across: float, angle: float) -> npt.NDArray[np.float32]:
    """A kernel of sum 1."""
    edge = max(1, math.ceil(3 * max(along, across)))
    y, x = np.mgrid[-edge : edge + 1, -edge : edge + 1]
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    weights = np.exp(-((u / along) ** 2 + (v / across) ** 2) / 2)
    kernel: npt.NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return kernel


def _draw_size(base: tuple[int, ...], one: _Pass, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width between the ends: smaller, larger or as they are."""
    (low, high), kind = one.resize, rng.random()
    factor = 1.0
    if kind < one.shrinks:
        factor = rng.uniform(low, min(1.0, high)) if low < 1 else low
    elif kind < one.shrinks + one.grows:
        factor = rng.uniform(max(1.0, low), high) if high > 1 else high
    height, width = (max(_LEAST_SIDE, round(side * factor)) for side in base[:2])
    return height, width


def _resize(image_HWC: ByteArray, size: tuple[int, int], rng: np.random.Generator) -> ByteArray:
    """By area, bilinear or bicubic."""
    from PIL import Image

    ways = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    way = ways[rng.integers(len(ways))]
    if image_HWC.shape[:2] == size:
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize(size[::-1], way))


def _add_noise(
    image_HWC: ByteArray, sigmas: tuple[float, float], rng: np.random.Generator
) -> ByteArray:
    """Gaussian noise, or Poisson's, in each channel or the same in all."""
    sigma, gaussian, grey = rng.uniform(*sigmas), rng.random() < _GAUSSIAN, rng.random() < _GREY
    seen = luma(image_HWC)[..., None].clip(0, 255) if grey else image_HWC.astype(np.float64)
    if gaussian:
        noise = rng.normal(0.0, sigma, seen.shape)
    else:
        noise = sigma * _POISSON * (rng.poisson(seen) - seen)
    return _as_bytes(image_HWC + noise)


def _compress(
    image_HWC: ByteArray, qualities: tuple[int, int], rng: np.random.Generator
) -> ByteArray:
    from PIL import Image

    quality = int(rng.integers(qualities[0], qualities[1], endpoint=True))
    if quality == 100:
        return image_HWC
    held = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_HWC)).save(held, "JPEG", quality=quality)
    return np.asarray(Image.open(held).convert("RGB"))


def _as_bytes(image_HWC: npt.NDArray[np.floating]) -> ByteArray:
    pixels: ByteArray = np.rint(image_HWC).clip(0, 255).astype(np.uint8)
    return pixels
