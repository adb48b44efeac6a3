"""Patches for a GPU: cut from photos in its memory, or prefetched while it computes.

Shapes: N batch, P patch side in LR pixels, S scale.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from mipkd.distill.batch import Batch, Sampler
from mipkd.distill.patch_sampler import AnyArray, PatchSampler, latent_planes
from mipkd.losses.base import TeacherPass

log = logging.getLogger(__name__)

_SHARE = 0.25  # of the GPU's free memory, for the photos


def choose_sampler(sampler: PatchSampler, device: torch.device) -> Sampler:
    """A sampler of the same patches for the device: on a CPU, `sampler` itself."""
    if device.type != "cuda":
        return sampler
    size = sum(p.lr_HWC.nbytes for p in sampler.photos)
    size += sum(p.hr_HWC.nbytes for p in sampler.photos if p.hr_HWC is not None)
    size += sum(array.nbytes for one in sampler.teacher_outputs for array in one.arrays)
    free, _ = torch.cuda.mem_get_info(device)
    if size <= _SHARE * free:
        log.info("photos stay on the GPU: %.0f MB", size / 1e6)
        return GpuSampler(sampler, device)
    log.info("photos are read ahead: %.0f MB are too many for the GPU", size / 1e6)
    return PrefetchSampler(sampler)


class GpuSampler:
    """All photos on the device as uint8, and a teacher's cached outputs in 16 bits; a batch is one
    gather for LR, one for HR where there is a truth, and one for each of the outputs."""

    def __init__(self, sampler: PatchSampler, device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        self._lr = _Pixels([p.lr_HWC for p in sampler.photos], device)
        truths = [p.hr_HWC for p in sampler.photos if p.hr_HWC is not None]
        self._hr = [_Pixels(truths, device)] if sampler.has_truth else []
        self._image, self._latents = list[_Pixels](), list[_Pixels]()
        if sampler.cached_part("image") == "image":
            self._image = [_Pixels([one.image_HWC for one in sampler.teacher_outputs], device)]
        if sampler.cached_part("latents") == "latents":
            count = range(len(sampler.teacher_outputs))
            planes = latent_planes(sampler.teacher_outputs)
            self._latents = [_Pixels([plane(n) for n in count], device) for plane in planes]

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The batch of a step, on the device."""
        draws = torch.from_numpy(self._sampler.draw(step)).to(self._device, non_blocking=True)
        patch, scale = self._sampler.patch, self._sampler.scale
        lr = self._lr.cut(draws, patch, 1)
        hr = [one.cut(draws, patch * scale, scale) for one in self._hr]
        cached = self._sampler.cached_part(wants)
        image = [one.cut(draws, patch * scale, scale) for one in self._image if cached != "none"]
        latents = [one.cut(draws, patch, 1) for one in self._latents if cached == "latents"]
        return Batch(lr, next(iter(hr), None), next(iter(image), None), tuple(latents))


class _Pixels:
    """Images of any sizes and one number of channels in one flat tensor."""

    def __init__(self, images: Sequence[AnyArray], device: torch.device) -> None:
        pixels, channels = sum(i.shape[0] * i.shape[1] for i in images), images[0].shape[-1]
        kind = torch.from_numpy(images[0][:0].copy()).dtype
        self._flat = torch.empty(pixels, channels, dtype=kind, device=device)
        at = 0
        for image in images:  # one by one: all may not fit into memory
            flat = torch.from_numpy(image.reshape(-1, channels).copy())
            self._flat[at : at + len(flat)] = flat
            at += len(flat)
        sizes = np.array([image.shape[0] * image.shape[1] for image in images])
        self._starts = torch.from_numpy(np.cumsum(sizes) - sizes).to(device)
        self._widths = torch.tensor([image.shape[1] for image in images], device=device)

    def cut(self, draws_N4: Tensor, size: int, scale: int) -> Tensor:
        """Squares of `size`, flipped and turned as drawn."""
        photo, top, left, turn = draws_N4.unbind(1)
        along = torch.arange(size, device=draws_N4.device)
        down, across = along[None, :, None], along[None, None, :]
        transposed = (turn & 4 > 0)[:, None, None]
        row, column = (torch.where(transposed, across, down), torch.where(transposed, down, across))
        row = torch.where((turn & 1 > 0)[:, None, None], size - 1 - row, row)
        column = torch.where((turn & 2 > 0)[:, None, None], size - 1 - column, column)
        row, column = row + (top * scale)[:, None, None], column + (left * scale)[:, None, None]
        width, start = self._widths[photo][:, None, None], self._starts[photo][:, None, None]
        found = self._flat[start + row * width + column]
        values = found.permute(0, 3, 1, 2).float()
        return values.div_(255) if self._flat.dtype == torch.uint8 else values


class PrefetchSampler:
    """Makes the next batch in pinned memory while the device computes this one."""

    def __init__(self, sampler: PatchSampler) -> None:
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="patches")
        self._next: dict[tuple[int, TeacherPass], Future[Batch]] = {}

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The batch of a step, in pinned memory."""
        ready = self._next.pop((step, wants), None) or self._thread.submit(self._make, step, wants)
        self._next = {(step + 1, wants): self._thread.submit(self._make, step + 1, wants)}
        return ready.result()

    def _make(self, step: int, wants: TeacherPass) -> Batch:
        batch = self._sampler.batch(step, wants)
        return batch.pin_memory() if torch.cuda.is_available() else batch
