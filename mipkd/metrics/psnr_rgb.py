"""PSNR over all three channels: a loss of colour counts as much as one of brightness."""

import numpy as np

from mipkd.core.images import psnr_of
from mipkd.metrics.base import ByteArray, Metric


def psnr_rgb(image_HWC: ByteArray, truth_HWC: ByteArray) -> float:
    """In dB; equal images give 100."""
    return psnr_of(float(np.mean(np.square(image_HWC.astype(np.float64) - truth_HWC))))


METRIC = Metric("psnr_rgb", "PSNR-RGB", "dB", "up", psnr_rgb)
