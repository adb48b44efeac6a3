"""Ranges of numbers, stated beside a record's field: `scale: Annotated[int, Range(1, 16)]`.

The codec holds every number that it reads against them, so that each reader of a file does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold; NaN never, what is not known is `None` there."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf  # and not equal to it

    def holds(self, number: float) -> bool:
        """Whether a number is in it."""
        return self.least <= number <= self.most and number > self.above

    def __str__(self) -> str:
        if self.above > -math.inf:
            return f"over {self.above}" + (f" to {self.most}" if self.most < math.inf else "")
        return f"at least {self.least}" if self.most == math.inf else f"{self.least} to {self.most}"


_DAY_S = 86_400.0

Scale = Annotated[int, Range(1, 16)]  # upscaling factor
Multiple = Annotated[int, Range(1, 4096)]  # of sides of an input
Side = Annotated[int, Range(1, 2**20)]  # pixels
Pixels = Annotated[int, Range(0, 2**16)]  # around a tile
Count = Annotated[int, Range(0)]
Bytes = Annotated[int, Range(0, 2**50)]
Share = Annotated[float, Range(0)]
Seconds = Annotated[float, Range(0)]
Sample = Annotated[float, Range(above=0, most=_DAY_S)]  # seconds that one call took
