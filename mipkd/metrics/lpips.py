"""LPIPS 0.1 (Zhang et al., 2018) on AlexNet, as papers give it: lower is nearer."""

from mipkd.metrics._perceptual import open_lpips, why_no_library
from mipkd.metrics.base import Backbone, Metric

METRIC = Metric(
    name="lpips",
    title="LPIPS",
    unit="",
    better="down",
    measure=None,
    digits=4,
    least_side=31,  # AlexNet's last feature is one pixel
    backbone=Backbone(
        "torchvision's AlexNet (alexnet-owt-7be5be79.pth)", why_no_library, open_lpips
    ),
)
