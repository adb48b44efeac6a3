"""PSNR of the luma, as the SR papers give it."""

from mipkd.core.images import psnr_y
from mipkd.metrics.base import Metric

METRIC = Metric("psnr_y", "PSNR-Y", "dB", "up", lambda image, truth: psnr_y(image, truth, border=0))
