"""The sizes of students that `--student auto` chooses among, and how those that fit are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mipkd.archs.base import gmacs
from mipkd.core.errors import UsageError
from mipkd.core.records import Model
from mipkd.distill import student as students


@dataclass(frozen=True)
class Grid:
    """A family's sizes, each list from the smallest on."""

    family: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    letters: str = "cb"  # of width and depth

    def spec(self, width: int, depth: int) -> str:
        """Such as "edsr:c32b8"."""
        return f"{self.family}:{self.letters[0]}{width}{self.letters[1]}{depth}"


_WIDTHS, _DEPTHS = (16, 24, 32, 48, 64), (2, 4, 8, 16)
_ALWAYS = (
    Grid("edge", _WIDTHS, _DEPTHS),
    Grid("compact", _WIDTHS, _DEPTHS),
    Grid("edsr", _WIDTHS, _DEPTHS),
    Grid("rlfn", (16, 24, 32, 40, 52), (2, 4, 6)),
    Grid("span", (16, 24, 32, 48), (6,)),  # others read nets of six blocks only
)
# Families that are tried only where the teacher is of one of them.
_OF_TEACHERS = (
    Grid("rcan", (16, 32, 48, 64), (1, 2, 5, 10), "cg"),
    Grid("swinir", (24, 36, 48, 60, 90), (1, 2, 4, 6), "cr"),
    Grid("imdn", (16, 32, 48, 64), (2, 4, 6, 8)),
    Grid("lkdn", (14, 28, 42, 56), (2, 4, 5, 8)),
)


def grids_for(teacher: Model | None) -> tuple[Grid, ...]:
    """The grids of all families that a student of this teacher may be of."""
    family = teacher.arch if teacher else ""
    return (*_ALWAYS, *(grid for grid in _OF_TEACHERS if grid.family == family))


def find_largest(grid: Grid, fits: Callable[[str], bool]) -> list[str]:
    """The sizes that fit and that are no part of another one that does, the widest first.

    Latency rises with width and with depth: after a depth that does not fit one width, narrower
    ones are tried from that depth on. So `fits` is asked at most once a width and once a depth.
    """
    found, at = [], 0
    for width in reversed(grid.widths):
        deepest = ""
        while at < len(grid.depths) and fits(grid.spec(width, grid.depths[at])):
            deepest, at = grid.spec(width, grid.depths[at]), at + 1
        found += [deepest] if deepest else []
    return found


def gmacs_of(teacher: Model, spec: str) -> float:
    """Of a student as it is deployed, at LR 256x256; infinite where the teacher's family has no
    such size."""
    try:
        arch, hyper = students.find_sizes(teacher, spec)
    except UsageError:
        return float("inf")
    with torch.device("meta"):
        return gmacs(arch.make(hyper).to_deployed())


def an_example(teacher: Model, candidates: Sequence[str]) -> str:
    """One of the students that may be chosen, for what has to be said before one is: of those
    smaller than the teacher in the middle, else the first."""
    listed = candidates or [
        grid.spec(width, depth)
        for grid in grids_for(teacher)
        for width, depth in zip(grid.widths, grid.depths, strict=False)
    ]
    costs = {spec: gmacs_of(teacher, spec) for spec in listed}
    smaller = sorted(
        (spec for spec in listed if costs[spec] < teacher.gmacs), key=lambda s: costs[s]
    )
    return smaller[len(smaller) // 2] if smaller else listed[0]
