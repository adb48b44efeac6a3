"""PSNR over all three channels: a loss of colour counts as much as one of brightness."""

import math

import numpy as np

from mipkd.core.images import PSNR_OF_EQUAL_DB
from mipkd.metrics.base import ByteArray, Metric


def psnr_rgb(image_HWC: ByteArray, truth_HWC: ByteArray) -> float:
    """In dB; equal images give 100."""
    mse = float(np.mean(np.square(image_HWC.astype(np.float64) - truth_HWC)))
    return min(PSNR_OF_EQUAL_DB, 10 * math.log10(255**2 / mse)) if mse else PSNR_OF_EQUAL_DB


METRIC = Metric("psnr_rgb", "PSNR-RGB", "dB", "up", psnr_rgb)
