"""The precisions, one row each: all that this program knows of a precision stands here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be from those of another machine: its kernels sum in another order."""

    levels: int  # of 255, on any value
    psnr_db: float  # over all values of all images


@dataclass(frozen=True)
class Precision:
    """What a model computes in, or how its weights are stored."""

    name: str
    is_float: bool
    # Ranges of its values are read from calibration patches; without them nothing is quantised,
    # while a float is only held to be in its range.
    reads_patches: bool
    tolerance: Tolerance

    @property
    def needs_patches(self) -> bool:
        """Whether no model can be built without calibration patches."""
        return self.reads_patches and not self.is_float


# FP32 sums differ in the last bits: a value may round to the next level. 16 bits and INT8 round
# between layers too, and one step there may be several levels in the image. OpenVINO with and
# without BF16 and VNNI instructions: EDSR 32x8 x2 in bf16 1 level, 66 dB, in int8 2, 64 dB;
# EDSR-baseline x4 in int8 6 levels, 54 dB.
_ROWS = (
    Precision("fp32", is_float=True, reads_patches=False, tolerance=Tolerance(1, 60.0)),
    Precision("bf16", is_float=True, reads_patches=False, tolerance=Tolerance(8, 50.0)),
    Precision("fp16", is_float=True, reads_patches=True, tolerance=Tolerance(2, 55.0)),
    # Only the weights have 8 bits, and only as they are stored.
    Precision("w8", is_float=False, reads_patches=False, tolerance=Tolerance(1, 60.0)),
    Precision("int8", is_float=False, reads_patches=True, tolerance=Tolerance(16, 45.0)),
)
PRECISIONS = {row.name: row for row in _ROWS}  # in the order in which tables list them
FLOATS = tuple(row.name for row in _ROWS if row.is_float)
QUANTIZED = tuple(row.name for row in _ROWS if not row.is_float)


def executed_precision(kernels: Mapping[str, int]) -> str:
    """The precision that a model runs in, of its kernels by precision.

    "int8" if any of them has 8 bits, else that of most; "" where none was told.
    """
    return "int8" if kernels.get("int8") else max(kernels, key=lambda p: kernels[p], default="")


def order_of(name: str) -> int:
    """A precision's place in tables; one that is not known comes last."""
    return [*PRECISIONS, name].index(name)


def tolerance_of(name: str) -> Tolerance:
    """How far outputs may be off; the widest for a precision that is not known."""
    return PRECISIONS.get(name, PRECISIONS["int8"]).tolerance
