"""Run a teacher over whole photos once, instead of at each step of a training."""

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
from mipkd.distill.tiled_forward import run_tiled

log = logging.getLogger(__name__)


def count_lr_pixels(photos: Photos) -> int:
    """The LR pixels of all photos."""
    return sum(prod(photo.lr_HWC.shape[:2]) for photo in open_photos(photos))


def cache_bytes(pixels: int, scale: int, directions: Directions | None = None) -> int:
    """The size of a cache for photos with `pixels` LR pixels in all."""
    latents = len(directions.positions) * directions.width if directions else 0
    return pixels * (3 * scale**2 + latents) * HALF


def fill_cache(net: SRNet, photos: Photos, directions: Directions | None, out: Path) -> None:
    """Run the net over every photo that `out` does not hold yet.

    Raises:
        StageError: the outputs for a photo do not fit into 16 bits.
    """
    opened, device = open_photos(photos), next(net.parameters()).device
    positions = directions.positions if directions else ()
    encoders = [one.to(device) for one in read_directions(directions)] if directions else []
    size = cache_bytes(count_lr_pixels(photos), photos.scale, directions)
    with CacheWriter(out, KINDS[: 2 if directions else 1]) as writer:
        todo = opened[writer.count :]
        for number, photo in enumerate(todo):
            start = perf_counter()
            output = run_tiled(net, photo.lr_HWC, positions, encoders)
            if not all(np.isfinite(values).all() for values in output.arrays):
                raise StageError(
                    f"teacher_cache: the teacher's {photo.name} is not finite in 16 bits",
                    hint="--set distill.cache_gb=0 runs the teacher at each step",
                )
            writer.add(output)
            if number == 0:
                rate = (perf_counter() - start) / photo.lr_HWC.size
                seconds = rate * sum(one.lr_HWC.size for one in todo)
                message = "teacher cache: %d of %d photos, %.2g GB, about %.0f s"
                log.info(message, len(todo), len(opened), size / 1e9, seconds)
