"""Run a net over a whole photo, a large one in tiles, so that memory is bounded.

Shapes: C channels, K positions, L latent channels, H W low-res size, S scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mipkd.archs.base import SRNet, as_input
from mipkd.core.images import ByteArray
from mipkd.distill.cache_store import HalfArray, TeacherOutput
from mipkd.losses._principal import PrincipalDirections

_TILE_BYTES = 1.5e9  # of activations
_MARGIN = 32  # LR pixels at least around the used part of a tile
_LEAST_SIDE = 4 * _MARGIN


@torch.inference_mode()
def run_tiled(
    net: SRNet,
    lr_HWC: ByteArray,
    positions: tuple[int, ...] = (),
    directions: Sequence[PrincipalDirections] = (),
    *,
    side: int | None = None,
) -> TeacherOutput:
    """The net's image and latents, computed in float32 and rounded to 16 bits.

    `side`: of the largest tile, in LR pixels; None takes what memory allows.
    """
    height, width = lr_HWC.shape[:2]
    scale, latent = net.scale, directions[0].width if directions else 0
    image = np.empty((height * scale, width * scale, 3), np.float16)
    latents = np.empty((len(positions), height, width, latent), np.float16)
    side = side or _largest_side(net)
    if height * width <= side * side:
        side = max(height, width)
    for rows in _split_side(height, side, net.multiple):
        for columns in _split_side(width, side, net.multiple):
            tile = as_input(net, lr_HWC[rows.tile, columns.tile])
            sr_NCHW, features = net.forward_padded(tile, positions)
            image[rows.at(scale), columns.at(scale)] = _crop(sr_NCHW, rows, columns, scale)
            for k, (found, taps_NCHW) in enumerate(zip(directions, features, strict=True)):
                part = _crop(found.encode(taps_NCHW), rows, columns, 1)
                latents[k, rows.at(1), columns.at(1)] = part
    return TeacherOutput(image, latents if directions else None)


@dataclass(frozen=True)
class _Span:
    """A tile in one dimension: what the net sees and which part of it is used. LR pixels."""

    start: int
    stop: int
    used_from: int
    used_to: int

    @property
    def tile(self) -> slice:
        return slice(self.start, self.stop)

    def at(self, scale: int) -> slice:
        """Where the used part lies in the photo."""
        return slice(self.used_from * scale, self.used_to * scale)

    def within(self, scale: int) -> slice:
        """Where the used part lies in the tile."""
        first = self.start * scale
        return slice(self.used_from * scale - first, self.used_to * scale - first)


def _split_side(length: int, side: int, multiple: int) -> Iterator[_Span]:
    """Tiles of at most `side`; they start at multiples of the net's window, as in the photo."""
    margin = max(_MARGIN, side // 8)
    step = length
    if length > side:
        count = math.ceil(length / (side - 2 * margin))
        step = math.ceil(length / count / multiple) * multiple
    for first in range(0, length, step):
        last = min(first + step, length)
        start = max(0, first - margin) // multiple * multiple
        yield _Span(start, min(length, last + margin), first, last)


def _largest_side(net: SRNet) -> int:
    """The side of a tile: upsampling holds about two maps of the net's width at full size."""
    pixel = 2 * 4 * max(net.width, 64) * net.scale**2
    return max(_LEAST_SIDE, math.isqrt(int(_TILE_BYTES / pixel)))


def _crop(maps_NCHW: Tensor, rows: _Span, columns: _Span, scale: int) -> HalfArray:
    part_CHW = maps_NCHW[0, :, rows.within(scale), columns.within(scale)]
    half: HalfArray = part_CHW.permute(1, 2, 0).half().cpu().numpy()
    return half
