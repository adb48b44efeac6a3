"""What a metric is, and which there are.

A metric is one file with an attribute `METRIC`: here, in a folder `mipkd/metrics` on the path, or
in any package that names it as an entry point of the group `mipkd.metrics`. Tables, gates and
`results.json` then know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mipkd.core import plugins
from mipkd.core.errors import UsageError, nearest

ByteArray = npt.NDArray[np.uint8]
# Image and reference, uint8 RGB of shape (H, W, 3), their border cropped.
Measure = Callable[[ByteArray, ByteArray], float]
FIRST = ("psnr_y", "ssim_y", "ms_ssim_y")  # in tables; the others follow by name


@dataclass(frozen=True)
class Backbone:
    """The net whose features a metric compares: its weights are the user's own file."""

    title: str  # whose, and what the file is called
    why_not: Callable[[], str]  # what is missing here to compute with it; "" if nothing is
    # The metric with these weights, by torchvision's key names. Raises UnsupportedError: they are
    # not those of the net.
    open: Callable[[Mapping[str, Any]], Measure]


@dataclass(frozen=True)
class Metric:
    """A figure of how near an image is to its reference."""

    name: str  # that of its file
    title: str  # heads its column in tables
    unit: str  # "dB", "levels"; empty for a bare number
    better: Literal["up", "down"]
    measure: Measure | None  # None: its backbone is to be opened first
    digits: int = 3  # after the point, in tables
    least_side: int = 1  # pixels that an image needs
    backbone: Backbone | None = None

    def loss(self, value: float, reference: float) -> float:
        """By how much a value is worse than another, in the metric's unit."""
        return reference - value if self.better == "up" else value - reference

    def fits(self, image_HWC: ByteArray) -> bool:
        """Whether an image is large enough for it."""
        smallest: int = min(image_HWC.shape[:2])
        return smallest >= self.least_side


@cache
def list_metrics() -> dict[str, Metric]:
    """All that can be loaded, by name."""
    found = plugins.load_all("mipkd.metrics", "METRIC", Metric)
    order = [name for name in FIRST if name in found]
    return {name: found[name] for name in dict.fromkeys([*order, *found])}


def list_plain() -> list[Metric]:
    """Those that need no weights: every image is measured by them, wherever that is."""
    return [metric for metric in list_metrics().values() if metric.backbone is None]


def find_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    known = list_metrics()
    if name not in known:
        raise UsageError(f"metric: unknown name {name!r}", hint=nearest(name, known))
    return known[name]
