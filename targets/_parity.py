"""Check that a built model gives the pixels of the graph that it was built from.

Shapes: N batch, C channels, H W low-res size, S scale.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from mipkd.core.errors import UnsupportedError
from mipkd.core.images import psnr_of
from targets._images import upscale
from targets._onnxruntime.session import OrtSession
from targets._tiles import FixedSizes
from targets.base import Session, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mipkd.core.records import Built, Graph
    from targets.base import ByteArray

_SIZES = ((31, 41), (17, 27), (25, 23))  # of noise, odd: they reveal what even ones hide
_LEVELS = 1  # of 255: FP32 sums in another order
_LEAST_DB = 30.0  # no net loses as much by 16 bits unless its values overflow
_ROUNDINGS = 16  # a net rounds in each of its layers


def check_pixels(target: Target, built: Built, graph: Graph, photos: Sequence[ByteArray]) -> None:
    """Compare a float model with its graph in ONNX Runtime, on photos and for FP32 on noise.

    Raises:
        UnsupportedError: it gives other pixels, beyond the rounding of its precision.
    """
    exact = built.precision == "fp32"
    images = [*photos, *(_noise(graph.multiple) if exact else [])]
    with (
        closing(target.open(built)) as session,
        closing(_as_tiled(session, OrtSession(graph.file, {}))) as reference,
    ):
        for lr_HWC in images:
            expected, found = (
                upscale(one, lr_HWC, scale=graph.scale, multiple=graph.multiple).astype(np.int16)
                for one in (reference, session)
            )
            gap = np.abs(expected - found)
            if exact and gap.max() > max(_LEVELS, _rounding_levels(reference, lr_HWC, graph)):
                raise _refusal(built, lr_HWC, f"{gap.max()} levels of 255")
            psnr_db = psnr_of(float(np.mean(np.square(gap))))
            if not exact and psnr_db < _LEAST_DB:
                raise _refusal(built, lr_HWC, f"{psnr_db:.1f} dB")


def _as_tiled(session: Session, reference: Session) -> Session:
    """The reference, given the tiles that a model for some sizes is given."""
    return session.around(reference) if isinstance(session, FixedSizes) else reference


def _refusal(built: Built, lr_HWC: ByteArray, gap: str) -> UnsupportedError:
    height, width = lr_HWC.shape[:2]
    return UnsupportedError(
        f"{built.target} {built.precision}: converting the graph changes its image by {gap} "
        f"at LR {width}x{height}",
        hint="the converter is at fault: update it; to go without: other --target, --precision",
    )


def _noise(multiple: int) -> list[ByteArray]:
    rng = np.random.default_rng(0)
    sizes = [[(side // multiple | 1) * multiple for side in size] for size in _SIZES]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def _rounding_levels(reference: Session, lr_HWC: ByteArray, graph: Graph) -> float:
    """How many levels float32's rounding may move: a few times what the image's last bit does."""
    height, width = (side - side % graph.multiple for side in lr_HWC.shape[:2])
    part = lr_HWC[:height, :width].transpose(2, 0, 1)[None]
    lr_NCHW = part.astype(np.float32) / np.float32(255)
    rng = np.random.default_rng(0)
    last_bit = np.float32(2.0**-23) * rng.uniform(-1, 1, lr_NCHW.shape).astype(np.float32)
    one, other = (reference.run(lr) for lr in (lr_NCHW, lr_NCHW * (1 + last_bit)))
    return _ROUNDINGS * 255 * float(np.abs(one - other).max())
