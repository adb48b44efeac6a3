"""What a tensor of a graph has to do with its image: which of its axes lie along it, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np


class InexactError(Exception):
    """Why no margin makes tiles equal to the whole image."""


@dataclass(frozen=True)
class Along:
    """An axis along the image: position p reads LR pixels step*p - before to step*p + after."""

    side: int  # of the image: 0 height, 1 width
    step: Fraction = Fraction(1)  # LR pixels from one position to the next
    before: Fraction = Fraction(0)
    after: Fraction = Fraction(0)

    def strided(self, stride: int, begin: int, span: int) -> Along:
        """Of positions q that read q * stride - begin and the `span` positions after it."""
        before = self.before + self.step * begin
        after = self.after + self.step * (span - begin)
        return Along(self.side, self.step * stride, before, after)

    def split(self, parts: int) -> Along:
        """Of blocks of `parts` positions."""
        return self.strided(parts, 0, parts - 1)

    def refined(self, parts: int, begin: int = 0, span: int | None = None) -> Along:
        """Of positions q that read (q + begin - span) / parts to (q + begin) / parts."""
        fine = self.step / parts
        span = parts - 1 if span is None else span
        before, after = self.before + fine * (span - begin), self.after + fine * begin
        return Along(self.side, fine, before, after)


Axis = Along | None  # None: no place in the image, such as batch and channels
Axes = tuple[Axis, ...]
Shapes = tuple[tuple[int, ...], ...]  # one a measured size of the image


@dataclass(frozen=True)
class Operand:
    """An input of a node."""

    axes: Axes  # all None where it does not come from the image
    shapes: Shapes
    from_image: bool = False
    value: Any = None  # an array where it is the same at every size of the image


@dataclass(frozen=True)
class Operation:
    """A node with what was measured around it; an input that is left out is None."""

    kind: str
    facts: dict[str, Any]  # its attributes
    inputs: tuple[Operand | None, ...]
    shapes: Shapes  # of its first result
    opset: int

    @property
    def first(self) -> Operand:
        """Its first input."""
        operand = self.inputs[0] if self.inputs else None
        return operand or self.fail("its input is unknown")

    def fail(self, why: str) -> NoReturn:
        """Say that it makes tiles inexact."""
        raise InexactError(f"{self.kind}: {why}")

    def values(self, at: int) -> list[Any] | None:
        """The constant input at an index, flat; None where there is none."""
        operand = self.inputs[at] if at < len(self.inputs) else None
        if operand is None:
            return None
        if operand.value is None:
            self.fail("what it does depends on the image's size")
        return [one.item() for one in np.asarray(operand.value).ravel()]

    def stated(self, name: str, at: int) -> list[Any] | None:
        """An attribute, or in later opsets the input at an index."""
        return list(self.facts[name]) if name in self.facts else self.values(at)

    def require_no_place(self, axes: Sequence[int], why: str) -> None:
        """Refuse to work along one of the image's axes."""
        if any(self.first.axes[axis] for axis in axes):
            self.fail(why)
