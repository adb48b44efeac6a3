"""Run a teacher over whole photos once, so that training need not run it at each step."""

from __future__ import annotations

import logging
from math import prod
from pathlib import Path
from time import perf_counter

import numpy as np

from mipkd.archs.base import SRNet
from mipkd.core.errors import StageError
from mipkd.core.photos import open_photos
from mipkd.core.records import Directions, Photos
from mipkd.distill.cache_store import HALF, KINDS, CacheWriter
from mipkd.distill.latent_directions import read_directions
from mipkd.distill.tiled_forward import teach_whole

log = logging.getLogger(__name__)


def lr_pixels(photos: Photos) -> int:
    """All LR pixels of the photos."""
    return sum(prod(photo.lr_HWC.shape[:2]) for photo in open_photos(photos))


def cache_bytes(pixels: int, scale: int, directions: Directions | None = None) -> int:
    """What photos of so many LR pixels take."""
    latents = len(directions.positions) * directions.width if directions else 0
    return pixels * (3 * scale**2 + latents) * HALF


def fill_cache(net: SRNet, photos: Photos, directions: Directions | None, out: Path) -> None:
    """Run the net over every photo that `out` does not hold yet.

    Raises:
        StageError: what it makes of a photo cannot be stored in 16 bits.
    """
    opened, device = open_photos(photos), next(net.parameters()).device
    positions = directions.positions if directions else ()
    encoders = [one.to(device) for one in read_directions(directions)] if directions else []
    size = cache_bytes(lr_pixels(photos), photos.scale, directions)
    with CacheWriter(out, KINDS[: 2 if directions else 1]) as writer:
        todo = opened[writer.count :]
        for number, photo in enumerate(todo):
            start = perf_counter()
            taught = teach_whole(net, photo.lr_HWC, positions, encoders)
            if not all(np.isfinite(values).all() for values in taught.arrays):
                raise StageError(
                    f"teacher_cache: the teacher's {photo.name} is not finite in 16 bits",
                    hint="--set distill.cache_gb=0 runs the teacher at each step",
                )
            writer.add(taught)
            if number == 0:
                rate = (perf_counter() - start) / photo.lr_HWC.size
                seconds = rate * sum(one.lr_HWC.size for one in todo)
                told = "teacher cache: %d of %d photos, %.2g GB, about %.0f s"
                log.info(told, len(todo), len(opened), size / 1e9, seconds)
