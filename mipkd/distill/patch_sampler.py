"""Random patches of the photos of a store, and of what a teacher made of them.

Shapes: N batch, P patch side in LR pixels, S scale. Values: float32 in [0, 1], RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import copy
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mipkd.core.images import ByteArray
from mipkd.core.photos import open_photos
from mipkd.core.records import Photos, TeacherCache
from mipkd.distill.batch import Batch
from mipkd.distill.cache_store import HalfArray, TeacherOutput, open_cache
from mipkd.losses.base import TeacherPass

AnyArray = npt.NDArray[Any]


class PatchSampler:
    """Random patches, none of photos to `leave_out`; `batch` is a pure function of seed and step,
    so that a resume is exact."""

    def __init__(
        self,
        photos: Photos,
        *,
        patch: int,
        batch: int,
        seed: int,
        cache: TeacherCache | None = None,
        leave_out: Collection[int] = (),
    ) -> None:
        self.photos = open_photos(photos)
        self.left_out = frozenset(leave_out)
        self.scale, self.patch, self.size, self.seed = photos.scale, patch, batch, seed
        self.cache = cache
        self.teacher_outputs = open_cache(cache, photos.count) if cache else []
        self.rows = slice(0, batch)

    @property
    def has_truth(self) -> bool:
        """Whether every photo has an HR image."""
        return all(photo.hr_HWC is not None for photo in self.photos)

    def share(self, rank: int, count: int) -> PatchSampler:
        """This process's rows of the same batches."""
        mine, rows = copy(self), self.size // count
        mine.rows = slice(rank * rows, (rank + 1) * rows)
        return mine

    def cached_part(self, wants: TeacherPass) -> TeacherPass:
        """The part of that pass that is cached for each photo: all of it, or none."""
        if not self.teacher_outputs or wants not in ("image", "latents"):
            return "none"
        return (
            "none" if wants == "latents" and self.teacher_outputs[0].latents_KHWL is None else wants
        )

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The patches of a step: random photo, position, flip and rotation."""
        draws, cached, scale = self.draw(step), self.cached_part(wants), self.scale
        lr = self._cut(draws, 1, lambda index: self.photos[index].lr_HWC)
        hr = self._cut(draws, scale, self._truth) if self.has_truth else None
        if cached == "none":
            return Batch(lr, hr)
        image = self._cut(draws, scale, lambda index: self.teacher_outputs[index].image_HWC)
        planes = latent_planes(self.teacher_outputs) if cached == "latents" else ()
        return Batch(lr, hr, image, tuple(self._cut(draws, 1, plane) for plane in planes))

    def _truth(self, index: int) -> ByteArray:
        hr_HWC = self.photos[index].hr_HWC
        assert hr_HWC is not None
        return hr_HWC

    def _cut(self, draws_N4: AnyArray, scale: int, image: Callable[[int], AnyArray]) -> Tensor:
        """The drawn patches of images `scale` times as large as LR, as float (N, C, P, P)."""
        side, first = self.patch * scale, image(0)
        patches = np.empty((len(draws_N4), side, side, first.shape[-1]), first.dtype)
        for row, (index, top, left, turn) in enumerate(draws_N4):
            high, low = top * scale, left * scale
            patches[row] = _turn(image(index)[high : high + side, low : low + side], turn)
        return _as_tensor(patches)

    def draw(self, step: int) -> npt.NDArray[np.int64]:
        """Photo, top and left in LR pixels, and turn (0 to 7) of each patch of a step, (N, 4)."""
        rng = np.random.default_rng([self.seed, step])
        drawn = np.empty((self.size, 4), np.int64)
        every = range(len(self.photos))
        among = [n for n in every if n not in self.left_out] if self.left_out else every
        for row in range(self.size):
            index = among[rng.integers(len(among))]
            height, width = self.photos[index].lr_HWC.shape[:2]
            top, left = (rng.integers(side - self.patch + 1) for side in (height, width))
            drawn[row] = index, top, left, rng.integers(8)
        return drawn[self.rows]


def latent_planes(outputs: Sequence[TeacherOutput]) -> list[Callable[[int], HalfArray]]:
    """For each position a function from a photo's index to its latents there, (H, W, L)."""
    first = outputs[0].latents_KHWL
    assert first is not None
    return [partial(_plane, outputs, k) for k in range(len(first))]


def _plane(outputs: Sequence[TeacherOutput], k: int, index: int) -> HalfArray:
    latents_KHWL = outputs[index].latents_KHWL
    assert latents_KHWL is not None
    plane_HWL: HalfArray = latents_KHWL[k]
    return plane_HWL


def _turn(patch_HWC: AnyArray, turn: int) -> AnyArray:
    """One of the eight flips and quarter turns of a square."""
    if turn & 1:
        patch_HWC = patch_HWC[::-1]
    if turn & 2:
        patch_HWC = patch_HWC[:, ::-1]
    return patch_HWC.transpose(1, 0, 2) if turn & 4 else patch_HWC


def _as_tensor(images_NHWC: AnyArray) -> Tensor:
    """Float NCHW in channels-last memory; bytes are scaled to [0, 1]."""
    values = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    return values.float().div_(255) if values.dtype == torch.uint8 else values.float()
