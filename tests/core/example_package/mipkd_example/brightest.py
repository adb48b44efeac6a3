"""By how much the brightest value is off."""

from mipkd.metrics.base import Metric


def brightest(image_HWC, truth_HWC):
    """In levels."""
    return abs(float(image_HWC.max()) - float(truth_HWC.max()))


METRIC = Metric("brightest", "Brightest", "levels", "down", brightest)
