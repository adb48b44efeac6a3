"""A target that does nothing, to measure the bench itself."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

from targets.base import BuildRequest, Session, Target

if TYPE_CHECKING:
    from mipkd.core.records import Built
    from targets.base import FloatArray


class NullSession(Session):
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


class Null(Target):
    """No runtime and no pixels."""

    name = "null"
    makes_pixels = False

    def precisions(self) -> tuple[str, ...]:
        """One, for form's sake."""
        return ("fp32",)

    def why_not(self) -> str:
        """It is always there."""
        return ""

    def versions(self) -> dict[str, str]:
        """Nothing can change its figures but numpy."""
        return {"numpy": np.__version__}

    def build(self, request: BuildRequest) -> Built:
        """The graph as it is."""
        self.check(request)
        request.out.mkdir(parents=True, exist_ok=True)
        file = request.out / request.graph.file.name
        shutil.copyfile(request.graph.file, file)
        return self.describe(request, file)

    def open(self, built: Built) -> NullSession:
        """A session that does nothing."""
        return NullSession(built.scale)


TARGET = Null()
