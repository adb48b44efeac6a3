"""SSIM of the luma (Wang et al., 2004)."""

from mipkd.core.images import SSIM_WINDOW, ssim_y
from mipkd.metrics.base import Metric

METRIC = Metric(
    name="ssim_y",
    title="SSIM-Y",
    unit="",
    better="up",
    measure=lambda image, truth: ssim_y(image, truth, border=0),
    digits=4,
    least_side=SSIM_WINDOW,
)
