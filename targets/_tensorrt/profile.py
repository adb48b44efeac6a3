"""LR sizes that an engine is built for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]  # height, width

LEAST = 16  # LR pixels a side: the smallest that every student's graph takes
_USUAL = ((180, 320), (256, 256))  # where nobody says sizes: a quarter of 720p, and tiles


@dataclass(frozen=True)
class Profile:
    """LR height and width that an engine takes: at least, usually, at most.

    Kernels are chosen for the usual one. The builder and the runtime make room for the largest:
    at 1280x1280 one tensor of EDSR x4 with 64 channels takes 6.7 GB.
    """

    least: Size
    usual: Size
    most: Size

    @classmethod
    def of(cls, sizes: Sequence[Size], multiple: int = 1) -> Profile:
        """From the smallest image up to the greatest height and width of `sizes`, tuned for the
        first of them; sides are rounded up to multiples of what the graph takes."""
        padded = [_pad(size, multiple) for size in sizes or _USUAL]
        most = max(h for h, _ in padded), max(w for _, w in padded)
        lowest = min(_pad((LEAST, LEAST), multiple)[0], *most)
        return cls((lowest, lowest), padded[0], most)

    @classmethod
    def at(cls, size: Size) -> Profile:
        """Of one size alone."""
        return cls(size, size, size)

    @classmethod
    def parse(cls, text: str) -> Profile:
        """What `str` gives; a single number is that of both sides, as older models have it."""
        ends = [[int(side) for side in part.split("x")] for part in text.split("-")]
        least, usual, most = ((sides[-1], sides[0]) for sides in ends)
        return cls(least, usual, most)

    @property
    def sizes(self) -> tuple[Size, Size, Size]:
        """All three."""
        return self.least, self.usual, self.most

    def takes(self, height: int, width: int) -> bool:
        """Whether an image of that size is within it."""
        return all(
            low <= side <= high
            for low, side, high in zip(self.least, (height, width), self.most, strict=True)
        )

    def __str__(self) -> str:
        return "-".join(f"{width}x{height}" for height, width in self.sizes)


def _pad(size: Size, multiple: int) -> Size:
    height, width = (side + -side % multiple for side in size)
    return height, width
