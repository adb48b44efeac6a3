"""Core ML: packages for Apple's devices, made on any machine, run on macOS.

Elsewhere `open` gives a simulation (targets/_mil.py): the saved package's pixels, not its speed.
Core ML has no converter from ONNX, so `build` starts from the torch net that a graph was made
from. With DESIGN.md's exception, the builder imports torch and coremltools inside its functions.
"""

from __future__ import annotations

import platform
import shutil
import sys
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import MissingError, UnsupportedError, UsageError
from mipkd.core.quiet import quiet
from mipkd.core.records import Built, Graph, PatchSet, TargetInfo
from targets import _coreml_int8, _torch_net
from targets._coreml_convert import (
    INPUT,
    INSTALL,
    LOGGERS,
    OUTPUT,
    converted,
    describe,
    load_coremltools,
    settle,
    with_small_weights,
)
from targets.base import version_of

if TYPE_CHECKING:
    from pathlib import Path

    from targets._mil import Program
    from targets.base import FloatArray

COMPUTE_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
VARIANTS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}


class CoreMlSession:
    """A package on this Mac."""

    def __init__(self, file: Path, units: str) -> None:
        coremltools = load_coremltools()
        with quiet(*LOGGERS):
            self._model: Any = coremltools.models.MLModel(
                str(file), compute_units=coremltools.ComputeUnit[units]
            )

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (1, C, S*H, S*W)."""
        return self._model.predict({INPUT: lr_NCHW})[OUTPUT]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drop the model."""
        self._model = None


class SimulatedSession:
    """A package run op by op by torch: the right pixels, at no telling speed."""

    def __init__(self, file: Path) -> None:
        from targets._mil import Program

        load_coremltools()
        self._program: Program | None = Program(file)

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (1, C, S*H, S*W)."""
        assert self._program is not None, "closed"
        return self._program(lr_NCHW)

    def close(self) -> None:
        """Drop the weights."""
        self._program = None


class CoreMl:
    """Core ML of macOS 13, iOS 16 and later, on all compute units or on some of them."""

    makes_pixels = True

    def __init__(self, variant: str = "") -> None:
        self.name = f"coreml:{variant}" if variant else "coreml"
        self._units = VARIANTS[variant] if variant else "ALL"

    def variants(self) -> tuple[str, ...]:
        """The CPU alone, with the GPU, with the Neural Engine; without one, Core ML chooses."""
        return tuple(VARIANTS)

    def variant(self, name: str) -> CoreMl:
        """Core ML kept to some of the compute units, so that a Mac measures each."""
        return CoreMl(name)

    @property
    def simulated(self) -> bool:
        """Everywhere but on macOS."""
        return sys.platform != "darwin"

    def precisions(self) -> tuple[str, ...]:
        """FP32, FP16, FP16 with weights stored in 8 bits, and INT8 convolutions."""
        return ("fp32", "fp16", "w8", "int8")

    def why_not(self) -> str:
        """Missing only where coremltools is; what is no Mac simulates."""
        return "" if version_of("coremltools") else f"coremltools is not installed; {INSTALL}"

    def versions(self) -> dict[str, str]:
        """coremltools, numpy, torch, and macOS where it is the runtime."""
        found = {name: version_of(name) for name in ("coremltools", "numpy", "torch")}
        found["macos"] = platform.mac_ver()[0]
        return {name: known for name, known in found.items() if known}

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: TargetInfo | None = None,
    ) -> Built:
        """`out`/model.mlpackage: arrays in [0, 1] in and out."""
        return self._built(graph, precision, calibration, out, images=False)

    def build_for_images(
        self, graph: Graph, precision: str, out: Path, *, calibration: PatchSet | None = None
    ) -> Built:
        """`out`/images.mlpackage: an 8-bit RGB image in and out, for apps.

        Scaling to [0, 1], x255, clipping and rounding are in its program. `open` does not take
        it: it gives arrays.
        """
        return self._built(graph, precision, calibration, out, images=True)

    def open(self, built: Built) -> CoreMlSession | SimulatedSession:
        """The model on macOS, on the compute units that `built.options` names; else simulated.

        Raises:
            StageError: the weight file is not the one that was built.
            UnsupportedError: an operation that the simulation does not know.
        """
        from targets._mil_file import check_weights, read_spec

        units = built.options.get("compute_units", "ALL")
        if units not in COMPUTE_UNITS:
            raise UsageError(
                f"coreml: no compute units {units!r}", hint="known: " + ", ".join(COMPUTE_UNITS)
            )
        if self.simulated:
            return SimulatedSession(built.file)
        load_coremltools()
        check_weights(built.file, read_spec(built.file))
        return CoreMlSession(built.file, units)

    def _built(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        images: bool,
    ) -> Built:
        if precision not in self.precisions():
            raise UnsupportedError(
                f"{self.name}: no precision {precision!r}",
                hint="known: " + ", ".join(self.precisions()),
            )
        net, kept = _torch_net.net_of(graph, target=self.name), tuple[str, ...]()
        if precision == "int8":
            if calibration is None:
                raise MissingError(
                    f"{self.name} int8 needs calibration patches", hint="give photos: --data"
                )
            net, kept = _coreml_int8.quantized(net, calibration)
            kept = (*kept, "needs macOS 14 or iOS 17")
        package = out / ("images.mlpackage" if images else "model.mlpackage")
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(package, ignore_errors=True)
        with quiet(*LOGGERS):
            model, notes = converted(net, graph, precision, images=images)
            if precision == "w8":
                model, kept = with_small_weights(model), ("activations are FP16",)
            describe(model, graph, precision)
            model.save(str(package))
            settle(package)
        return Built(
            target=self.name,
            precision=precision,
            role=graph.role,
            file=package,
            size_bytes=sum(f.stat().st_size for f in package.rglob("*") if f.is_file()),
            scale=graph.scale,
            multiple=graph.multiple,
            options={"compute_units": self._units},
            notes=(*notes, *kept),
        )


TARGET = CoreMl()
