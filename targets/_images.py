"""A picture through a session: padded, run, cropped, clipped, rounded.

Shapes: N batch, C channels, H W low-res size. Values: uint8, RGB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mipkd.core.errors import NotFiniteError

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.base import ByteArray, FloatArray, Session


def upscale(session: Session, lr_HWC: ByteArray, *, scale: int, multiple: int = 1) -> ByteArray:
    """The uint8 image a session makes of a uint8 image: pad, run, crop, clip, round.

    Raises:
        NotFiniteError: some of its values are no numbers, or infinite.
    """
    sr_HWC = _run_padded(session, lr_HWC, scale, multiple)
    if session.takes_uint8:
        return np.ascontiguousarray(sr_HWC)
    return _as_levels(sr_HWC, 255).astype(np.uint8)


def upscale_to_16_bits(
    session: Session, lr_HWC: ByteArray, *, scale: int, multiple: int = 1
) -> npt.NDArray[np.uint16]:
    """The same as uint16 in 0 to 65535, of a session that gives floats."""
    assert not session.takes_uint8, "it has rounded already"
    return _as_levels(_run_padded(session, lr_HWC, scale, multiple), 65535).astype(np.uint16)


def _run_padded(session: Session, lr_HWC: ByteArray, scale: int, multiple: int) -> Any:
    """What the session gives, (H, W, C), cropped to the image; floats in 0 to 1, or uint8."""
    height, width = lr_HWC.shape[:2]
    pad = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    padded = np.pad(lr_HWC, pad, mode="symmetric") if multiple > 1 else lr_HWC
    uint8_NCHW = np.ascontiguousarray(padded.transpose(2, 0, 1)[None])
    inside = session.takes_uint8
    lr_NCHW = uint8_NCHW if inside else uint8_NCHW.astype(np.float32) / np.float32(255)
    sr_NCHW = session.run(cast("FloatArray", lr_NCHW))
    return sr_NCHW[0, :, : height * scale, : width * scale].transpose(1, 2, 0)


def _as_levels(sr_HWC: FloatArray, highest: int) -> FloatArray:
    """Values in 0 to 1, clipped and rounded to whole levels up to `highest`."""
    if not np.isfinite(sr_HWC).all():
        height, width = sr_HWC.shape[:2]
        raise NotFiniteError(
            f"output of {width}x{height} pixels: values that are not finite (NaN, infinite)",
            hint="the model is broken, or overflows in this precision: take another",
        )
    levels = np.ascontiguousarray(np.clip(sr_HWC, 0, 1))
    levels *= np.float32(highest)
    np.rint(levels, out=levels)  # in place: an image can be large
    return levels
