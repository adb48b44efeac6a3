"""Core ML: packages for Apple's devices, made on any machine, run on macOS.

Elsewhere `open` gives a simulation (targets/_coreml/simulate.py): the saved package's pixels, not
its speed.
Core ML has no converter from ONNX, so `build` starts from the torch net that a graph was made
from. With DESIGN.md's exception, the builder imports torch and coremltools inside its functions.
"""

from __future__ import annotations

import platform
import shutil
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mipkd.core.precision import Tolerance, tolerance_of
from mipkd.core.quiet import quiet
from targets._coreml.convert import (
    INPUT,
    INSTALL,
    LOGGERS,
    OUTPUT,
    convert_net,
    describe,
    load_coremltools,
    make_reproducible,
    with_8_bit_weights,
)
from targets._coreml.quantize import quantize_convolutions
from targets._tiles import FixedSizes, Sizes
from targets._torch.exported_program import load_net
from targets.base import BuildRequest, Feature, Session, Target, check_options, version_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mipkd.core.records import Built
    from targets._coreml.simulate import Program
    from targets.base import FloatArray

COMPUTE_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
OFF_ANE = "models for any size may stay off the Neural Engine: coreml:ane, or build.fixed_sizes"
VARIANTS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}


class CoreMlSession(Session):
    """A package on this Mac."""

    def __init__(self, file: Path, units: str, *, images: bool) -> None:
        coremltools = load_coremltools()
        self.takes_uint8 = images
        with quiet(*LOGGERS):
            self._model: Any = coremltools.models.MLModel(
                str(file), compute_units=coremltools.ComputeUnit[units]
            )

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (1, C, S*H, S*W)."""
        if not self.takes_uint8:
            return self._model.predict({INPUT: lr_NCHW})[OUTPUT]  # type: ignore[no-any-return]
        from PIL import Image

        lr = Image.fromarray(lr_NCHW[0].transpose(1, 2, 0))
        sr_HWC = np.asarray(self._model.predict({INPUT: lr})[OUTPUT].convert("RGB"))
        return sr_HWC.transpose(2, 0, 1)[None]

    def close(self) -> None:
        """Drop the model."""
        self._model = None


class SimulatedSession(Session):
    """A package run op by op by torch: the right pixels; its speed means nothing."""

    def __init__(self, file: Path) -> None:
        from targets._coreml.package import takes_images
        from targets._coreml.simulate import Program

        self._program: Program | None = Program(file)
        self.takes_uint8 = takes_images(self._program.spec)

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (1, C, S*H, S*W)."""
        assert self._program is not None, "closed"
        sr_NCHW = self._program(lr_NCHW)
        return sr_NCHW.astype(np.uint8) if self.takes_uint8 else sr_NCHW

    def close(self) -> None:
        """Drop the weights."""
        self._program = None


class CoreMl(Target):
    """Core ML of macOS 13, iOS 16 and later, on all compute units or on some of them."""

    features = frozenset({Feature.FROM_NET, Feature.UINT8_IO, Feature.SIZES, Feature.FIXED_SIZES})
    options: ClassVar[Mapping[str, str]] = {"compute_units": "|".join(COMPUTE_UNITS)}
    # All but the stored weights is FP16.
    tolerances: ClassVar[Mapping[str, Tolerance]] = {"w8": tolerance_of("fp16")}

    def __init__(self, variant: str = "") -> None:
        self.name = f"coreml:{variant}" if variant else "coreml"
        self._units = VARIANTS[variant] if variant else "ALL"
        self.remark = "" if variant else OFF_ANE

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
        """Only coremltools can be missing; a machine that is no Mac simulates."""
        return "" if version_of("coremltools") else f"coremltools is not installed; {INSTALL}"

    def why_not_build(self, precision: str) -> str:
        """coremltools converts, on any machine."""
        return self.why_not()

    def versions(self) -> dict[str, str]:
        """coremltools, numpy, torch, and macOS where it is the runtime."""
        found = {name: version_of(name) for name in ("coremltools", "numpy", "torch")}
        found["macos"] = platform.mac_ver()[0]
        return {name: known for name, known in found.items() if known}

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.mlpackage: arrays in [0, 1] in and out; or `out`/images.mlpackage, which
        takes and gives 8-bit RGB images, as apps have them.

        For the Neural Engine, or on request, it takes the sizes of the request alone.
        """
        self.check(request)
        graph, precision, images = request.graph, request.precision, request.pixels == "uint8"
        package = request.out / ("images.mlpackage" if images else "model.mlpackage")
        net, kept = load_net(request, target=self.name), tuple[str, ...]()
        if precision == "int8":
            assert request.patches is not None, "accepted with them"
            net, kept = quantize_convolutions(net, request.patches)
            kept = (*kept, "needs macOS 14 or iOS 17")
        request.out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(package, ignore_errors=True)
        only = request.fixed_sizes or self._units == VARIANTS["ane"]
        sizes = request.padded_sizes if only else ()
        with quiet(*LOGGERS):
            model, shapes = convert_net(net, graph, precision, images=images, sizes=sizes)
            if precision == "w8":
                model, kept = with_8_bit_weights(model), ("activations are FP16",)
            describe(model, graph, precision, margin=request.margin, images=images)
            model.save(str(package))
            make_reproducible(package)
        if shapes.is_range and self._units in ("ALL", VARIANTS["ane"]):
            kept = (OFF_ANE, *kept)
        options = {"compute_units": self._units}
        return self.describe(request, package, options=options, notes=(*shapes.notes, *kept))

    def open(self, built: Built) -> Session:
        """The model on macOS, on the compute units that `built.options` names; else simulated.

        One that takes some sizes alone is given other images padded, or in tiles.

        Raises:
            StageError: the weight file is not the one that was built.
            UnsupportedError: an operation that the simulation does not know.
        """
        from targets._coreml.package import check_weights, read_spec, takes_images

        check_options(built.options, self.options, "coreml")
        units = built.options.get("compute_units", "ALL")
        load_coremltools()
        spec = read_spec(built.file)
        check_weights(built.file, spec)
        session: Session
        if self.simulated:
            session = SimulatedSession(built.file)
        else:
            session = CoreMlSession(built.file, units, images=takes_images(spec))
        sizes = sizes_of(built)
        return FixedSizes(session, sizes) if sizes else session


def sizes_of(built: Built) -> Sizes | None:
    """What a package takes where that is some sizes alone."""
    from targets._coreml.package import listed_sizes, margin_of, read_spec

    spec = read_spec(built.file)
    listed = listed_sizes(spec)
    return Sizes(listed, margin_of(spec), built.multiple) if listed else None


TARGET = CoreMl()
