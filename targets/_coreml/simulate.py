"""A simulation of Core ML: a package run op by op in torch, for its pixels and not its speed.

coremltools reads the program from the saved package, its operations are in mil_ops.py. Arithmetic
is torch's in float32; each result is rounded to the type that the program gives it, so FP16
programs round, and overflow, where Core ML does at the latest. Where it keeps more digits or sums
in another order is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mipkd.core.errors import UnsupportedError
from mipkd.core.quiet import quiet
from targets._coreml.convert import LOGGERS
from targets._coreml.mil_ops import OPS, WIDER, cast_to
from targets._coreml.package import (
    check_weights,
    listed_sizes,
    load_program,
    range_of_sides,
    read_spec,
)

if TYPE_CHECKING:
    from targets.base import FloatArray

Var = Any  # a value of coremltools' program
Values = dict[Var, Any]


@dataclass(frozen=True)
class Step:
    """One operation."""

    op: str
    inputs: dict[str, Var | tuple[Var, ...]]
    outputs: tuple[Var, ...]
    spent: tuple[Var, ...] = ()  # values that no later step reads


class Program:
    """A package's program, its weights decompressed; call it with one image."""

    def __init__(self, package: Path) -> None:
        """
        Raises:
            UsageError: not a package of an ML program.
            StageError: its weight file is not the one that was built.
            UnsupportedError: it has an operation that is not known here.
        """
        import torch

        self._torch = torch
        self.package = package
        self.spec = read_spec(package)
        check_weights(package, self.spec)
        with quiet(*LOGGERS):
            function = load_program(package, self.spec, OPS.keys())
        self.constants: Values = {}
        self._steps: list[Step] = []
        for operation in function.operations:
            self._take(operation)
        (self.output,) = function.outputs
        (self.input,) = function.inputs.values()
        self._steps = _with_spent(self._steps, self.output)

    def __call__(self, image_NCHW: FloatArray) -> FloatArray:
        """The program's output for one image, as float32.

        Raises:
            UnsupportedError: the package does not take images of this size.
        """
        torch = self._torch
        self._check_size(image_NCHW.shape)
        values = dict(self.constants)
        values[self.input] = torch.from_numpy(np.array(image_NCHW, np.float32))
        with torch.inference_mode():
            for step in self._steps:
                self._do(step, values)
                for var in step.spent:
                    del values[var]
        result: FloatArray = values[self.output].float().numpy()
        return result

    def _do(self, step: Step, values: Values) -> None:
        given = {
            name: [values[one] for one in var] if isinstance(var, tuple) else values[var]
            for name, var in step.inputs.items()
        }
        found = OPS[step.op](self._torch, given)
        found = found if isinstance(found, tuple) else (found,)
        for var, value in zip(step.outputs, found, strict=True):
            values[var] = cast_to(self._torch, value, _dtype_of(var))

    def _take(self, operation: Any) -> None:
        """Constants are kept as values, everything else as a step."""
        outputs = tuple(operation.outputs)
        if operation.op_type == "const":
            self.constants[outputs[0]] = self._constant(outputs[0].val)
            return
        inputs = {
            name: tuple(var) if isinstance(var, list | tuple) else var
            for name, var in operation.inputs.items()
        }
        step = Step(operation.op_type, inputs, outputs)
        if operation.op_type.startswith("constexpr_"):
            self._do(step, self.constants)
        else:
            self._steps.append(step)

    def _constant(self, value: Any) -> Any:
        """A str, or a tensor whose floats are float32 whatever they are stored as."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        wider = np.float32 if array.dtype.kind == "f" else WIDER.get(array.dtype.name, array.dtype)
        return self._torch.from_numpy(np.array(array, wider))

    def _check_size(self, shape: tuple[int, ...]) -> None:
        if listed := listed_sizes(self.spec):
            fits = shape[2:] in listed
            taken = ", ".join(f"{width}x{height}" for height, width in listed)
        else:
            ranges = range_of_sides(self.spec)
            fits = all(
                low <= side <= (high or side)
                for side, (low, high) in zip(shape[2:], ranges, strict=True)
            )
            (low, high), _ = ranges
            taken = f"{low} to {high} a side"
        if not fits or shape[:2] != (1, 3):
            given = " x ".join(map(str, shape))
            raise UnsupportedError(
                f"coreml: {self.package.name} takes RGB images of LR {taken}, not {given}",
                hint="pad or tile the image to a size that it takes",
            )


def _dtype_of(var: Var) -> str:
    """The name of a value's type in numpy, such as float16."""
    from coremltools.converters.mil.mil import types

    return str(np.dtype(types.nptype_from_builtin(var.dtype)).name)


def _with_spent(steps: list[Step], output: Var) -> list[Step]:
    """The steps, each with the values that are used there for the last time."""
    seen, found = {output}, list[Step]()
    for step in reversed(steps):
        used = {one for var in step.inputs.values() for one in _each(var)} | {*step.outputs}
        found.append(replace(step, spent=tuple(used - seen)))
        seen |= used
    return found[::-1]


def _each(var: Var | tuple[Var, ...]) -> tuple[Var, ...]:
    return var if isinstance(var, tuple) else (var,)
