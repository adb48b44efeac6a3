"""Targets, what they are asked to build, and the way of an image through a session.

Shapes: N batch, C channels, H W low-res size, S scale. Values: float32 in [0, 1], RGB.
This file and every target's `open` run on a bare device: Python >= 3.10, numpy, the runtime.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from calibration.search import Operation
from mipkd.core import plugins
from mipkd.core.errors import (
    MissingError,
    UnsupportedError,
    UsageError,
    nearest,
)
from mipkd.core.precision import PRECISIONS, Tolerance, tolerance_of
from mipkd.core.records import Built, Graph, Model, PatchSet, QuantPlan, QuantScheme, TargetInfo

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
NetLoader = Callable[[Model], Any]  # gives a record's torch net, in eval mode


class Session(ABC):
    """A model loaded on a device."""

    takes_uint8 = False  # the model takes and gives uint8, with clipping and rounding inside it

    @abstractmethod
    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W): the only timed call, blocks until done."""

    def frames_in_flight(self, shape: tuple[int, ...]) -> int:
        """How many threads should call `run` at a time, each with a (1, C, H, W)."""
        return 1

    def close(self) -> None:  # noqa: B027  # not every session holds something
        """Give the device's memory and threads back."""

    def forget_shapes(self) -> None:  # noqa: B027
        """Drop what is kept for each input shape so far."""


class Tuner(Protocol):
    """INT8 candidates of one graph on one target: all the same but for what stays float."""

    range_estimators: tuple[str, ...]  # of activations, the usual one first
    other_precisions: tuple[str, ...]  # precisions that floats can be computed in, the finest first

    def operations(self) -> tuple[Operation, ...]:
        """What INT8 can compute of the graph, in order."""

    def session(self, estimator: str, floats: Sequence[str], other: str) -> Session:
        """A candidate that computes the operations called `floats` in the precision `other`."""

    def quant_scheme(self, floats: Sequence[str]) -> QuantScheme:
        """All that INT8 rounds, with the usual ranges, when the operations called `floats` stay."""


class Feature(Enum):
    """What a target can do beside building and opening models."""

    FLOAT_SEARCH = "float_search"  # `tuner`: which layers INT8 leaves float can be searched
    FIXED_INT8 = "fixed_int8"  # `quant_scheme`: a student can be trained for its one INT8 recipe
    UINT8_IO = "uint8_io"  # builds models that take and give uint8
    INT8_IO = "int8_io"  # and int8: levels less 128
    FROM_NET = "from_net"  # builds from the torch net: not of a student that came as a graph
    FRAMES_IN_FLIGHT = "frames_in_flight"  # made for frames per second: a session runs several
    SIZES = "sizes"  # what it builds depends on `BuildRequest.sizes`
    FIXED_SIZES = "fixed_sizes"  # builds models for those sizes alone


Pixels = Literal["float32", "uint8", "int8"]
_PIXELS = {"uint8": Feature.UINT8_IO, "int8": Feature.INT8_IO}


@dataclass(frozen=True)
class BuildRequest:
    """What a target is asked to build."""

    graph: Graph
    precision: str
    out: Path  # folder for the files
    patches: PatchSet | None = None  # to read ranges from
    on: TargetInfo | None = None  # the machine that will run it; None: this one
    plan: QuantPlan | None = None  # which operations INT8 leaves float, as a search found
    scheme: QuantScheme | None = None  # learned together with the weights of `graph`
    # What goes in and out; but for "float32", clipping and rounding are in the model.
    pixels: Pixels = "float32"
    load_net: NetLoader | None = None  # for targets that start from the torch net
    ncnn_names: str = "pnnx"  # whose names of blobs and files ncnn's models get
    # LR height and width that it will run at, the one that is judged first, tiles last; empty: any.
    sizes: tuple[tuple[int, int], ...] = ()
    fixed_sizes: bool = False  # for those alone
    margin: int = 32  # LR pixels that a tile needs around it

    @property
    def padded_sizes(self) -> tuple[tuple[int, int], ...]:
        """`sizes` as the model sees them: up to whole multiples of the graph's, each once."""
        step = self.graph.multiple
        return tuple(dict.fromkeys((h + -h % step, w + -w % step) for h, w in self.sizes))

    @property
    def is_local(self) -> bool:
        """Whether this machine is the one that will run the model."""
        return self.on is None or self.on.local


class Target(ABC):
    """A runtime on a device. Each module of `targets` offers one as `TARGET`."""

    name: str
    makes_pixels = True  # False for a target that measures the bench, not a runtime
    remark = ""  # what `doctor` says of it beside its precisions
    features: frozenset[Feature] = frozenset()
    # What `Built.options` may hold, each with a pattern of its values. They come along with a model
    # from wherever it was made: nothing else reaches the runtime.
    options: ClassVar[Mapping[str, str]] = {}
    # By precision, where they are not the usual ones.
    tolerances: ClassVar[Mapping[str, Tolerance]] = {}

    @property
    def simulated(self) -> bool:
        """Whether `open` here gives another engine's pixels, in times that mean nothing."""
        return False

    @abstractmethod
    def precisions(self) -> tuple[str, ...]:
        """The precisions worth building on this machine, the reference first.

        That is "fp32", or the finest that a device without it computes in.
        """

    @abstractmethod
    def why_not(self) -> str:
        """Why this machine cannot run the target: "REASON; CURE", and "" if it can."""

    def why_not_build(self, precision: str) -> str:
        """Why this machine cannot build one of `precisions`, for whichever machine runs it:
        "REASON; CURE", and "" if it can."""
        return ""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Package name to version of all that can change a figure."""

    @abstractmethod
    def build(self, request: BuildRequest) -> Built:
        """Convert, and for INT8 quantise, a graph into files under `request.out`."""

    @abstractmethod
    def open(self, built: Built) -> Session:
        """Load what `build` made."""

    def count_kernels(self, built: Built) -> dict[str, int]:
        """How many convolutions and matrix products run in each precision on this machine.

        Read from the runtime after compiling; empty where it does not tell.
        """
        return {}

    def variants(self) -> Sequence[str]:
        """Names of the ways to have this target, each written `NAME:VARIANT`: `openvino:gpu`."""
        return ()

    def variant(self, name: str) -> Target:
        """One of `variants`; its `name` is the whole `NAME:VARIANT`."""
        raise NotImplementedError

    def tuner(self, request: BuildRequest) -> Tuner | None:
        """Candidates, kept in `request.out`; None where only the fixed recipe makes sense.

        With `request.scheme` all of them are on its grids, and its floats stay float. Only with
        `Feature.FLOAT_SEARCH`.
        """
        return None

    def quant_scheme(self, request: BuildRequest) -> QuantScheme:
        """All that its fixed INT8 of a graph rounds. Only with `Feature.FIXED_INT8`."""
        raise NotImplementedError

    def tolerance(self, precision: str) -> Tolerance:
        """How far its outputs may be from those of another machine."""
        return self.tolerances.get(precision) or tolerance_of(precision)

    def check(self, request: BuildRequest, known: Sequence[str] | None = None) -> None:
        """Refuse what cannot be built.

        `known` are the precisions that can be built, where they are not those offered.

        Raises:
            UnsupportedError: no such precision, or no models on such pixels.
            MissingError: calibration patches are needed.
        """
        precision, known = request.precision, known or self.precisions()
        if precision not in known:
            hint = "known: " + ", ".join(known)
            raise UnsupportedError(f"{self.name}: no precision {precision!r}", hint=hint)
        if PRECISIONS[precision].needs_patches and request.patches is None:
            what = f"{self.name} {precision} needs calibration patches"
            raise MissingError(what, hint="give photos: --data")
        self.check_pixels(request.pixels)
        if request.fixed_sizes and Feature.FIXED_SIZES not in self.features:
            raise UnsupportedError(
                f"build.fixed_sizes: {self.name} has no models for some sizes alone",
                hint="leave it at false",
            )

    def check_pixels(self, pixels: Pixels) -> None:
        """Refuse what models of this target cannot take and give.

        Raises:
            UnsupportedError: they do not.
        """
        if pixels != "float32" and _PIXELS[pixels] not in self.features:
            known = ["float32", *(name for name, one in _PIXELS.items() if one in self.features)]
            raise UnsupportedError(
                f"build.pixels: {self.name} has no models on {pixels} here",
                hint=f"known: {', '.join(known)}",
            )

    def describe(
        self,
        request: BuildRequest,
        file: Path,
        *,
        executes: str = "",
        options: dict[str, str] | None = None,
        notes: Sequence[str] = (),
        refused_by: dict[str, str] | None = None,
    ) -> Built:
        """The record of a model that was built; `executes` and `refused_by` as in `Built`.

        Raises:
            UnsupportedError: INT8 was asked for, and the runtime says that it computes none.
            UsageError: an option that the target does not declare: its model would not be opened.
        """
        check_options(options or {}, self.options, self.name)
        runs = PRECISIONS.get(executes)
        if request.precision == "int8" and runs and runs.is_float:
            raise UnsupportedError(
                f"int8: nothing to quantise: the runtime executes it in {executes}",
                hint="build the model in a float precision: --precision",
            )
        if executes not in ("", request.precision):
            notes = (*notes, f"asked for {request.precision}, the runtime executes {executes}")
        built = Built(
            target=self.name,
            precision=request.precision,
            role=request.graph.role,
            file=file,
            size_bytes=0,
            scale=request.graph.scale,
            multiple=request.graph.multiple,
            options=options or {},
            notes=tuple(notes),
            executes=executes,
            refused_by=refused_by or {},
        )
        return replace(built, size_bytes=sum(f.stat().st_size for f in files_of(built)))


def every() -> list[str]:
    """Names of all targets that load, each followed by its variants."""
    found = []
    for name, target in plugins.load_all("targets", "TARGET", Target).items():
        found += [name, *(f"{name}:{variant}" for variant in target.variants())]
    return found


def find(name: str) -> Target:
    """The target `NAME` or `NAME:VARIANT`.

    Raises:
        UsageError: no such target or variant, with the nearest name; or it does not load.
    """
    base, _, variant = name.partition(":")
    target: Target = plugins.load("targets", base, "TARGET", Target)
    if not variant:
        return target
    known = target.variants()
    if variant not in known:
        hint = nearest(variant, known) if known else f"{base} has no variants"
        raise UsageError(f"target {base}: unknown variant {variant!r}", hint=hint)
    return target.variant(variant)


def check_options(given: Mapping[str, str], allowed: Mapping[str, str], where: str) -> None:
    """Refuse options that a model may not bring along.

    Raises:
        UsageError: one is not in `allowed`, or its value does not match the pattern there.
    """
    for name, value in given.items():
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise UsageError(
                f"{where}: runtime option {name!r} (value {value!r}) may not be set by a model; "
                f"known: {known}",
                hint="do not trust it, or write the bundle anew: run",
            )
        if not re.fullmatch(allowed[name], value):
            raise UsageError(
                f"{where}: runtime option {name}: {value!r}; known: {allowed[name]}",
                hint="do not trust it, or write the bundle anew: run",
            )


def version_of(package: str) -> str:
    """The installed version of a Python package, "" without one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def is_installed(package: str) -> bool:
    """Whether a Python package is there, and would be found by an import of that name."""
    return bool(version_of(package)) and find_spec(package) is not None


def files_of(built: Built) -> list[Path]:
    """The files that `open` needs: a package's, or those with the model's name and any ending."""
    if built.file.is_dir():
        return sorted(f for f in built.file.rglob("*") if f.is_file())
    return sorted(
        f for f in built.file.parent.iterdir() if f.is_file() and f.stem == built.file.stem
    )
