"""A target that answers at once and so measures the bench itself."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Built, Graph, PatchSet, TargetInfo

if TYPE_CHECKING:
    from pathlib import Path

    from targets.base import FloatArray


class NullSession:
    """Returns the same zeros for inputs of the same shape."""

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self._shape: tuple[int, ...] = ()
        self._zeros: FloatArray = np.zeros(0, np.float32)

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """Zeros of the upscaled shape."""
        if lr_NCHW.shape != self._shape:
            count, channels, height, width = self._shape = lr_NCHW.shape
            shape = (count, channels, height * self.scale, width * self.scale)
            self._zeros = np.zeros(shape, np.float32)
        return self._zeros

    def close(self) -> None:
        """Nothing to give back."""


class Null:
    """No runtime and no pixels."""

    name = "null"
    makes_pixels = False
    simulated = False

    def precisions(self) -> tuple[str, ...]:
        """One, for form's sake."""
        return ("fp32",)

    def why_not(self) -> str:
        """Always there."""
        return ""

    def versions(self) -> dict[str, str]:
        """Nothing can change its figures but numpy."""
        return {"numpy": np.__version__}

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: TargetInfo | None = None,
    ) -> Built:
        """The graph as it is."""
        if precision not in self.precisions():
            raise UnsupportedError(f"null: no precision {precision!r}", hint="known: fp32")
        out.mkdir(parents=True, exist_ok=True)
        file = out / graph.file.name
        shutil.copyfile(graph.file, file)
        return Built(
            target=self.name,
            precision=precision,
            role=graph.role,
            file=file,
            size_bytes=file.stat().st_size,
            scale=graph.scale,
            multiple=graph.multiple,
        )

    def open(self, built: Built) -> NullSession:
        """A session that does nothing."""
        return NullSession(built.scale)


TARGET = Null()
