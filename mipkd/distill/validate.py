"""Validate a net in training: PSNR-Y over images, and strips of crops to look at.

Shapes: H W sizes of an image, C channels. Values: uint8 RGB.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mipkd.archs.base import SRNet, upscale_image
from mipkd.core.images import (
    PSNR_OF_EQUAL_DB,
    ByteArray,
    psnr_y,
    resize_bicubic,
    write_png,
)
from mipkd.distill.checkpoint import report_write_errors
from mipkd.distill.compile import run_eager
from mipkd.distill.data import Pair

log = logging.getLogger(__name__)

_STRIPS = 3  # images with a strip
_SIDE = 64  # LR pixels a side of its crop, from the centre


class Validation:
    """Scores a net on `tests` and writes bicubic | student | teacher | truth to `folder`."""

    def __init__(
        self, tests: Sequence[Pair], teacher: SRNet | None, folder: Path, device: torch.device
    ) -> None:
        if not tests:
            log.warning("no validation images: the student is not scored while it trains")
        self.tests, self.folder, self.device = tests, folder, device
        self.teacher = teacher.to(device) if teacher is not None else None
        self._fixed: dict[str, tuple[ByteArray, list[ByteArray]]] = {}

    def __call__(self, net: SRNet, step: int) -> float:
        """Mean PSNR-Y in dB, NaN without images; always in float32."""
        scores = []
        for index, (name, lr, hr) in enumerate(self.tests):
            sr = self._upscale(net, lr)
            scores.append(psnr_y(sr, hr, border=net.scale))
            if index < _STRIPS:
                self._write_strip(name, lr, sr, hr, step)
        return float(np.mean(scores)) if scores else float("nan")

    def score_references(self, inherited: SRNet) -> dict[str, float]:
        """Mean PSNR-Y in dB of bicubic, of a student that only inherited, and of the teacher."""
        scores: dict[str, list[float]] = {"bicubic": [], "inherited": [], "teacher": []}
        nets = {"inherited": inherited.to(self.device).eval(), "teacher": self.teacher}
        for _, lr, hr in self.tests:
            images = {name: self._upscale(net, lr) for name, net in nets.items() if net}
            images["bicubic"] = resize_bicubic(lr, (hr.shape[0], hr.shape[1]))
            for name, image in images.items():
                scores[name].append(psnr_y(image, hr, border=inherited.scale))
        means = {name: float(np.mean(found)) for name, found in scores.items() if found}
        # A teacher whose own image stands for the truth is held against nothing.
        return {name: mean for name, mean in means.items() if mean < PSNR_OF_EQUAL_DB}

    def _write_strip(
        self, name: str, lr: ByteArray, sr: ByteArray, hr: ByteArray, step: int
    ) -> None:
        height, width = (min(side, _SIDE) for side in lr.shape[:2])
        top, left = (lr.shape[0] - height) // 2, (lr.shape[1] - width) // 2
        scale = hr.shape[0] // lr.shape[0]
        high = np.s_[top * scale : (top + height) * scale, left * scale : (left + width) * scale]
        if name not in self._fixed:
            part = np.ascontiguousarray(lr[top : top + height, left : left + width])
            bicubic = resize_bicubic(part, (height * scale, width * scale))
            theirs = [self._upscale(self.teacher, part)] if self.teacher is not None else []
            self._fixed[name] = bicubic, theirs
        bicubic, theirs = self._fixed[name]
        file = self.folder / f"{name}-{step:07d}.png"
        with report_write_errors(file):
            self.folder.mkdir(exist_ok=True)
            write_png(file, np.concatenate([bicubic, sr[high], *theirs, hr[high]], axis=1))

    def _upscale(self, net: SRNet, lr_HWC: ByteArray) -> ByteArray:
        with run_eager(self.device):
            return upscale_image(net, lr_HWC)
