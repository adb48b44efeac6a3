"""DISTS (Ding et al., 2020) on VGG16, images not resized: lower is nearer."""

from mipkd.metrics._perceptual import open_dists, why_no_library
from mipkd.metrics.base import Backbone, Metric

METRIC = Metric(
    name="dists",
    title="DISTS",
    unit="",
    better="down",
    measure=None,
    digits=4,
    least_side=16,  # halved four times
    backbone=Backbone("torchvision's VGG16 (vgg16-397923af.pth)", why_no_library, open_dists),
)
