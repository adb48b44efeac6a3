"""A tint: how far the mean of the worst channel is off, which PSNR-Y hardly sees."""

from mipkd.core.images import shift_rgb
from mipkd.metrics.base import ByteArray, Metric


def tint(image_HWC: ByteArray, truth_HWC: ByteArray) -> float:
    """The largest of the channels' mean shifts, in levels of 255."""
    return max(map(abs, shift_rgb(image_HWC, truth_HWC, border=0)))


METRIC = Metric("tint", "Tint", "levels", "down", tint, digits=2)
