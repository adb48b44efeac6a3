"""Patches for a GPU: cut from pixels that stay on it, or made ready while it computes.

Shapes: N batch, P patch side in LR pixels, S scale.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from mipkd.core.images import ByteArray
from mipkd.distill.batch import Batch, Sampler
from mipkd.distill.data import PatchSampler
from mipkd.losses.base import TeacherPass

log = logging.getLogger(__name__)

_SHARE = 0.25  # of the GPU's free memory that the photos may take


def near(sampler: PatchSampler, device: torch.device) -> Sampler:
    """A sampler of the same patches that suits the device: on a CPU, the same sampler."""
    if device.type != "cuda":
        return sampler
    size = sum(p.lr_HWC.nbytes + p.hr_HWC.nbytes for p in sampler.photos)
    free, _ = torch.cuda.mem_get_info(device)
    if size <= _SHARE * free:
        log.info("photos stay on the GPU: %.0f MB", size / 1e6)
        return ResidentSampler(sampler, device)
    log.info("photos are read ahead: %.0f MB are too many for the GPU", size / 1e6)
    return ReadAhead(sampler)


class ResidentSampler:
    """All photos on the device as uint8; a batch is one gather for LR and one for HR."""

    def __init__(self, sampler: PatchSampler, device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        self._lr = _Pixels([p.lr_HWC for p in sampler.photos], device)
        self._hr = _Pixels([p.hr_HWC for p in sampler.photos], device)

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The batch of a step, on the device."""
        draws = torch.from_numpy(self._sampler.draws(step)).to(self._device, non_blocking=True)
        patch, scale = self._sampler.patch, self._sampler.scale
        return Batch(self._lr.cut(draws, patch, 1), self._hr.cut(draws, patch * scale, scale))


class _Pixels:
    """Images of any sizes in one flat tensor."""

    def __init__(self, images: list[ByteArray], device: torch.device) -> None:
        flat = np.concatenate([image.reshape(-1, 3) for image in images])
        self._flat = torch.from_numpy(flat).to(device)
        sizes = np.array([image.shape[0] * image.shape[1] for image in images])
        self._starts = torch.from_numpy(np.cumsum(sizes) - sizes).to(device)
        self._widths = torch.tensor([image.shape[1] for image in images], device=device)

    def cut(self, draws_N4: Tensor, size: int, scale: int) -> Tensor:
        """Squares of `size`, flipped and turned as drawn."""
        photo, top, left, turn = draws_N4.unbind(1)
        along = torch.arange(size, device=draws_N4.device)
        down, across = along[None, :, None], along[None, None, :]
        transposed = (turn & 4 > 0)[:, None, None]
        row, column = (
            torch.where(transposed, across, down),
            torch.where(transposed, down, across),
        )
        row = torch.where((turn & 1 > 0)[:, None, None], size - 1 - row, row)
        column = torch.where((turn & 2 > 0)[:, None, None], size - 1 - column, column)
        row, column = row + (top * scale)[:, None, None], column + (left * scale)[:, None, None]
        width, start = self._widths[photo][:, None, None], self._starts[photo][:, None, None]
        found = self._flat[start + row * width + column]
        return found.permute(0, 3, 1, 2).float().div_(255)


class ReadAhead:
    """Makes the next batch in pinned memory while the device is at this one."""

    def __init__(self, sampler: PatchSampler) -> None:
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="patches")
        self._next: dict[tuple[int, TeacherPass], Future[Batch]] = {}

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The batch of a step, in pinned memory."""
        ready = self._next.pop((step, wants), None) or self._thread.submit(self._made, step, wants)
        self._next = {(step + 1, wants): self._thread.submit(self._made, step + 1, wants)}
        return ready.result()

    def _made(self, step: int, wants: TeacherPass) -> Batch:
        batch = self._sampler.batch(step, wants)
        return batch.pinned() if torch.cuda.is_available() else batch
