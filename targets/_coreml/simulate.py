"""Core ML packages run op by op without Core ML: what graph and weights give, not how fast.

The program is read from the saved package (package.py), its operations are in mil_ops.py.
Arithmetic is torch's in float32; each result is rounded to the type that the program declares, so
FP16 programs round, and overflow, where Core ML does at the latest. Where it keeps more digits or
sums in another order is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mipkd.core.errors import UnsupportedError
from targets._coreml.mil_ops import OPS, WIDER, Values, rounded
from targets._coreml.package import (
    accepted,
    check_weights,
    main_block,
    read_spec,
    stored,
    type_name,
)

if TYPE_CHECKING:
    from targets.base import FloatArray


@dataclass(frozen=True)
class Step:
    """One operation: inputs and outputs are names of values."""

    op: str
    inputs: dict[str, tuple[str, ...]]
    outputs: tuple[tuple[str, str], ...]  # name, declared type
    spent: tuple[str, ...] = ()  # values that no later step reads


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
        block = main_block(self.spec, package)
        self.constants: Values = {}
        self._anonymous = 0
        self._steps: list[Step] = []
        for operation in block.operations:
            self._take(operation)
        self.output: str = block.outputs[0]
        self.input: str = self.spec.description.input[0].name
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
                for name in step.spent:
                    del values[name]
        result: FloatArray = values[self.output].float().numpy()
        return result

    def _do(self, step: Step, values: Values) -> None:
        given = {
            name: [values[n] for n in names] if name == "values" else values[names[0]]
            for name, names in step.inputs.items()
        }
        found = OPS[step.op](self._torch, given)
        found = found if isinstance(found, tuple) else (found,)
        for (name, declared), value in zip(step.outputs, found, strict=True):
            values[name] = rounded(self._torch, value, declared)

    def _take(self, operation: Any) -> None:
        """Constants are kept as values, everything else as a step."""
        outputs = tuple((o.name, type_name(o.type)) for o in operation.outputs)
        if operation.type == "const":
            self.constants[outputs[0][0]] = self._value(operation.attributes["val"])
            return
        if operation.type not in OPS:
            raise UnsupportedError(
                f"coreml: {self.package.name}: operation {operation.type!r} "
                f"({outputs[0][0]}) is not known to the simulation",
                hint="run the package on a Mac, or give a net without it; known: "
                + ", ".join(sorted(OPS)),
            )
        inputs = {name: self._names(argument) for name, argument in operation.inputs.items()}
        for name, attribute in operation.attributes.items():
            if name != "name":
                inputs[name] = (self._named(attribute),)
        step = Step(operation.type, inputs, outputs)
        if operation.type.startswith("constexpr_"):
            self._do(step, self.constants)
        else:
            self._steps.append(step)

    def _names(self, argument: Any) -> tuple[str, ...]:
        return tuple(
            b.name if b.WhichOneof("binding") == "name" else self._named(b.value)
            for b in argument.arguments
        )

    def _named(self, value: Any) -> str:
        self._anonymous += 1
        name = f"constant {self._anonymous}"
        self.constants[name] = self._value(value)
        return name

    def _value(self, value: Any) -> Any:
        """A constant: a str, or a tensor whose floats are float32 whatever they are stored as."""
        array = stored(self.package, value)
        if isinstance(array, str):
            return array
        floating = array.dtype.kind == "f"
        wider = WIDER.get(type_name(value.type), array.dtype)
        return self._torch.from_numpy(np.array(array, np.float32 if floating else wider))

    def _check_size(self, shape: tuple[int, ...]) -> None:
        ranges = accepted(self.spec)
        fits = len(shape) == 4 and all(
            low <= side <= (high if high > 0 else side)
            for side, (low, high) in zip(shape, ranges, strict=True)
        )
        if not fits:
            told = " x ".join(f"{a}" if a == b else f"{a}..{b}" for a, b in ranges)
            raise UnsupportedError(
                f"coreml: {self.package.name} takes {told}, not "
                + " x ".join(str(side) for side in shape),
                hint="pad or tile the image to a size that it takes",
            )


def _with_spent(steps: list[Step], output: str) -> list[Step]:
    """The steps, each with the values that are used there for the last time."""
    seen, found = {output}, list[Step]()
    for step in reversed(steps):
        names = {n for given in step.inputs.values() for n in given}
        names |= {name for name, _ in step.outputs}
        found.append(replace(step, spent=tuple(sorted(names - seen))))
        seen |= names
    return found[::-1]
