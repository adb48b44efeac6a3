"""A LiteRT graph before it is written: operators and constants by name, channels last.

Shapes: N batch, H W low-res size, C channels, S scale; NHWC.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Edge = tuple[str, int]  # an operation of the ONNX graph, and which input of it


@dataclass
class Op:
    """An operator; `code` and the names in `options` are those of LiteRT's schema."""

    code: str
    name: str  # of the node in the ONNX graph that it comes from
    inputs: list[str]
    outputs: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    # Which input of the ONNX graph reads each of `inputs`; none for what is not read there.
    edges: list[Edge | None] = field(default_factory=list)
    whole: bool = True  # whether it alone is that node
    # In INT8, where `code` does not say it: "moves", whose output has its input's values, as of a
    # convolution of ones and zeros; "follows", which is as float as what makes its input.
    role: str = ""


@dataclass(frozen=True)
class Grid:
    """How a tensor's integers stand for real values; one scale, or one for each slice of `axis`."""

    scale: npt.NDArray[np.float32]
    zero_point: int
    axis: int = 0


@dataclass(frozen=True)
class Side:
    """A tensor's height or width, as whole numbers of the image's: (times * side + add) / over."""

    times: int
    over: int
    add: int

    def of(self, side: int) -> int:
        """For an image of `side` pixels."""
        return (self.times * side + self.add) // self.over


@dataclass
class Net:
    """Operators in order, from one image to one image."""

    image: str
    result: str
    ops: list[Op] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    # Constants that hold a height and width, which depend on the image's.
    sizes: dict[str, tuple[Side, Side]] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)  # of tensors that are not floats
    kinds: dict[str, str] = field(default_factory=dict)  # of tensors that are not FLOAT32
    channels: dict[str, int] = field(default_factory=dict)  # of tensors that are no constants

    def copy(self) -> Net:
        """One whose operators may be edited; the constants' values are shared."""
        return Net(
            self.image,
            self.result,
            deepcopy(self.ops),
            dict(self.constants),
            dict(self.sizes),
            dict(self.grids),
            dict(self.kinds),
            dict(self.channels),
        )

    def maker(self) -> dict[str, Op]:
        """The operator that makes each tensor."""
        return {name: op for op in self.ops for name in op.outputs}

    def readers(self) -> dict[str, list[tuple[Op, int]]]:
        """The operators that read each tensor, and at which input."""
        found: dict[str, list[tuple[Op, int]]] = {}
        for op, index, name in self.reads():
            found.setdefault(name, []).append((op, index))
        return found

    def reads(self) -> Iterator[tuple[Op, int, str]]:
        """Every reading of a tensor that is no constant."""
        for op in self.ops:
            for index, name in enumerate(op.inputs):
                if name and name not in self.constants:
                    yield op, index, name

    def features(self) -> list[str]:
        """Names of all tensors that are no constants, in order."""
        return [self.image, *(name for op in self.ops for name in op.outputs)]

    def new(self, name: str) -> str:
        """A name that no tensor has, by underscores."""
        taken = {*self.features(), *self.constants}
        while name in taken:
            name += "_"
        return name
