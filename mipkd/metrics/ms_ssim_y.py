"""MS-SSIM of the luma (Wang, Simoncelli, Bovik, 2003): SSIM at five sizes, each half the last."""

import numpy as np

from mipkd.core.images import SSIM_WINDOW, Plane, compare_structure, luma
from mipkd.metrics.base import ByteArray, Metric

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # the paper's
_LEAST = (SSIM_WINDOW - 1) * 2 ** (len(_WEIGHTS) - 1) + 1  # the window fits at the smallest size


def ms_ssim_y(image_HWC: ByteArray, truth_HWC: ByteArray) -> float:
    """Contrast and structure of all sizes and the brightness of the smallest, weighted."""
    image_HW, truth_HW = luma(image_HWC), luma(truth_HWC)
    found = 1.0
    for weight in _WEIGHTS:
        similarity, structure = compare_structure(image_HW, truth_HW)
        part = similarity if weight == _WEIGHTS[-1] else structure
        found *= max(float(part.mean()), 0.0) ** weight  # negative: opposed, as bad as unlike
        image_HW, truth_HW = _halve(image_HW), _halve(truth_HW)
    return found


def _halve(plane_HW: Plane) -> Plane:
    """Means of 2x2 pixels; at an odd end the last row or column stands twice."""
    height, width = plane_HW.shape
    even = np.pad(plane_HW, ((0, height % 2), (0, width % 2)), mode="edge")
    rows = even[::2] + even[1::2]
    halved: Plane = (rows[:, ::2] + rows[:, 1::2]) / 4
    return halved


METRIC = Metric("ms_ssim_y", "MS-SSIM-Y", "", "up", ms_ssim_y, digits=4, least_side=_LEAST)
