"""A net over a whole photo, in tiles where it is large, so that memory is bounded.

Shapes: C channels, K positions, L latent channels, H W low-res size, S scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mipkd.archs.base import SRNet
from mipkd.core.images import ByteArray
from mipkd.distill.cache_store import HalfArray, Taught
from mipkd.losses._principal import PrincipalDirections

_TILE_BYTES = 1.5e9  # of activations
_MARGIN = 32  # LR pixels at least, to either side of what is kept of a tile
_LEAST_SIDE = 4 * _MARGIN


@torch.inference_mode()
def teach_whole(
    net: SRNet,
    lr_HWC: ByteArray,
    positions: tuple[int, ...] = (),
    directions: Sequence[PrincipalDirections] = (),
    *,
    side: int | None = None,
) -> Taught:
    """The net's image and latents, in float32 until they are stored.

    `side` of the largest tile in LR pixels; None takes what memory allows.
    """
    height, width = lr_HWC.shape[:2]
    scale, latent = net.scale, directions[0].width if directions else 0
    image = np.empty((height * scale, width * scale, 3), np.float16)
    latents = np.empty((len(positions), height, width, latent), np.float16)
    side = side or _side(net)
    if height * width <= side * side:
        side = max(height, width)
    for rows in _spans(height, side, net.multiple):
        for columns in _spans(width, side, net.multiple):
            tile = _as_tensor(net, lr_HWC[rows.seen, columns.seen])
            sr_NCHW, features = net.padded(tile, positions)
            image[rows.at(scale), columns.at(scale)] = _kept(sr_NCHW, rows, columns, scale)
            for k, (found, taps_NCHW) in enumerate(zip(directions, features, strict=True)):
                part = _kept(found.encode(taps_NCHW), rows, columns, 1)
                latents[k, rows.at(1), columns.at(1)] = part
    return Taught(image, latents if directions else None)


@dataclass(frozen=True)
class _Span:
    """A tile in one dimension: what the net sees, and what is kept of it. LR pixels."""

    start: int
    stop: int
    keep_from: int
    keep_to: int

    @property
    def seen(self) -> slice:
        return slice(self.start, self.stop)

    def at(self, scale: int) -> slice:
        """Where the kept part lies in the whole."""
        return slice(self.keep_from * scale, self.keep_to * scale)

    def within(self, scale: int) -> slice:
        """Where the kept part lies in the tile."""
        first = self.start * scale
        return slice(self.keep_from * scale - first, self.keep_to * scale - first)


def _spans(length: int, side: int, multiple: int) -> Iterator[_Span]:
    """Tiles of at most `side`; they begin at multiples of a net's window, as in the whole."""
    margin = max(_MARGIN, side // 8)
    step = length
    if length > side:
        count = math.ceil(length / (side - 2 * margin))
        step = math.ceil(length / count / multiple) * multiple
    for first in range(0, length, step):
        last = min(first + step, length)
        start = max(0, first - margin) // multiple * multiple
        yield _Span(start, min(length, last + margin), first, last)


def _side(net: SRNet) -> int:
    """Of a tile: up-sampling holds about two maps of the net's width at full resolution."""
    pixel = 2 * 4 * max(net.width, 64) * net.scale**2
    return max(_LEAST_SIDE, math.isqrt(int(_TILE_BYTES / pixel)))


def _as_tensor(net: SRNet, lr_HWC: ByteArray) -> Tensor:
    device = next(net.parameters()).device
    lr_NHWC = torch.from_numpy(lr_HWC.copy())[None].to(device)
    return lr_NHWC.permute(0, 3, 1, 2).float().div_(255)


def _kept(maps_NCHW: Tensor, rows: _Span, columns: _Span, scale: int) -> HalfArray:
    kept_CHW = maps_NCHW[0, :, rows.within(scale), columns.within(scale)]
    half: HalfArray = kept_CHW.permute(1, 2, 0).half().cpu().numpy()
    return half
