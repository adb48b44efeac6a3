"""What a target is, and how an image goes through a session.

Shapes: N batch, C channels, H W low-res size, S scale. Values: float32 in [0, 1], RGB.
This file and every target's `open` run on a bare device: Python >= 3.10, numpy, the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from calibration.search import Operation
from mipkd.core import plugins
from mipkd.core.errors import UsageError, nearest
from mipkd.core.records import Built, Graph, PatchSet, QuantPlan, Rounding, TargetInfo

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

PRECISIONS = ("fp32", "bf16", "fp16", "w8", "int8")
QUANTIZED = ("w8", "int8")  # w8: only the weights, and only as they are stored


class Session(Protocol):
    """A model loaded on a device. `run` is the only timed call and blocks until done.

    One whose model is on uint8 (`on_bytes`) says so in a true `takes_bytes`.
    """

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W)."""

    def close(self) -> None:
        """Give the device's memory and threads back."""


class Target(Protocol):
    """A runtime on a device. Each module of `targets` offers one as `TARGET`."""

    name: str
    makes_pixels: bool  # False for a target that measures the bench, not a runtime

    @property
    def simulated(self) -> bool:
        """Whether `open` here gives another engine's pixels, in times that mean nothing."""

    def precisions(self) -> tuple[str, ...]:
        """The precisions worth building on this machine, the reference first.

        That is "fp32", or the finest that a device without it computes in.
        """

    def why_not(self) -> str:
        """Why this machine cannot run the target: "REASON; CURE", and "" if it can."""

    def versions(self) -> dict[str, str]:
        """Package name to version of all that can change a figure."""

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: TargetInfo | None = None,
    ) -> Built:
        """Convert, and for "int8" quantise, `graph` into files under `out`.

        `on` is what the machine that will run it told of this target; None is this machine.
        """

    def open(self, built: Built) -> Session:
        """Load what `build` made."""


class Tuner(Protocol):
    """INT8 candidates of one graph on one target: all the same but for what stays float."""

    ranges: tuple[str, ...]  # recipes for ranges of activations, the usual one first
    rests: tuple[str, ...]  # precisions that floats can be computed in, the finest first

    def operations(self) -> tuple[Operation, ...]:
        """What INT8 can compute of the graph, in order."""

    def session(self, ranges: str, floats: Sequence[str], rest: str) -> Session:
        """A candidate in which the operations called `floats` are computed in `rest`."""

    def rounding(self, floats: Sequence[str]) -> Rounding:
        """All that INT8 rounds, with the usual ranges, when the operations called `floats` are."""


class Tunable(Protocol):
    """A target whose float layers can be searched; its `build` takes a `plan`."""

    def tuner(
        self, graph: Graph, patches: PatchSet, out: Path, rounding: Rounding | None = None
    ) -> Tuner | None:
        """Candidates, kept in `out`; None where only the fixed recipe makes sense.

        With `rounding`, learned with the weights of `graph`, all of them are on its grids, and its
        floats stay float.
        """

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: TargetInfo | None = None,
        plan: QuantPlan | None = None,
    ) -> Built:
        """As every target, and "int8" by a plan."""


class Teachable(Protocol):
    """A target whose INT8 is a fixed recipe that a student can be trained for."""

    def rounding(self, graph: Graph, patches: PatchSet) -> Rounding:
        """All that its INT8 of `graph` rounds."""

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: TargetInfo | None = None,
        rounding: Rounding | None = None,
    ) -> Built:
        """As every target, and "int8" on grids that were learned with the weights of `graph`."""


class OnBytes(Protocol):
    """A target whose models can be made to take and give uint8."""

    def on_bytes(self, built: Built) -> Built:
        """What `build` made, rewritten in place."""


class Varied(Protocol):
    """A target that can be had in several ways, written `NAME:VARIANT`, such as `openvino:gpu`."""

    def variants(self) -> Sequence[str]:
        """The names of its variants."""

    def variant(self, name: str) -> Target:
        """One of them; its `name` is the whole `NAME:VARIANT`."""


def every() -> list[str]:
    """All targets, each with its variants after it."""
    found = []
    for name in plugins.names("targets"):
        target = plugins.load("targets", name, "TARGET")
        variants = cast("Varied", target).variants() if hasattr(target, "variants") else ()
        found += [name, *(f"{name}:{variant}" for variant in variants)]
    return found


def find(name: str) -> Target:
    """The target `NAME` or `NAME:VARIANT`.

    Raises:
        UsageError: no such target or variant, with the nearest name.
    """
    base, _, variant = name.partition(":")
    target: Target = plugins.load("targets", base, "TARGET")
    if not variant:
        return target
    known = cast("Varied", target).variants() if hasattr(target, "variants") else ()
    if variant not in known:
        hint = nearest(variant, known) if known else f"{base} has no variants"
        raise UsageError(f"target {base}: unknown variant {variant!r}", hint=hint)
    return cast("Varied", target).variant(variant)


def version_of(package: str) -> str:
    """The installed version of a Python package, "" without one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def tuner_of(
    target: Target,
    graph: Graph,
    patches: PatchSet,
    out: Path,
    rounding: Rounding | None = None,
) -> Tuner | None:
    """The target's candidates; None where it only has a fixed recipe."""
    if not is_tunable(target):
        return None
    return cast("Tunable", target).tuner(graph, patches, out, rounding)


def is_tunable(target: Target) -> bool:
    """Whether the target can search for its float layers."""
    return hasattr(target, "tuner")


def is_teachable(target: Target) -> bool:
    """Whether a student can be trained for the target's fixed recipe."""
    return hasattr(target, "rounding") and "int8" in target.precisions()


@runtime_checkable
class Forgets(Protocol):
    """A session that keeps something for each input shape, and can drop it."""

    def forget(self) -> None:
        """Drop what was made for shapes so far."""


def takes_bytes(session: Session) -> bool:
    """Whether the session's model is on uint8, with range, clipping and rounding inside it."""
    return bool(getattr(session, "takes_bytes", False))


def files_of(built: Built) -> list[Path]:
    """What `open` needs: a package's files, or those of the model's name, whatever the ending."""
    if built.file.is_dir():
        return sorted(f for f in built.file.rglob("*") if f.is_file())
    return sorted(
        f for f in built.file.parent.iterdir() if f.is_file() and f.stem == built.file.stem
    )


def upscale(session: Session, lr_HWC: ByteArray, *, scale: int, multiple: int = 1) -> ByteArray:
    """The uint8 image a session makes of a uint8 image: pad, run, crop, clip, round."""
    height, width = lr_HWC.shape[:2]
    pad = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    padded = np.pad(lr_HWC, pad, mode="symmetric") if multiple > 1 else lr_HWC
    bytes_NCHW = np.ascontiguousarray(padded.transpose(2, 0, 1)[None])
    inside = takes_bytes(session)
    lr_NCHW = bytes_NCHW if inside else bytes_NCHW.astype(np.float32) / np.float32(255)
    sr_NCHW = session.run(cast("FloatArray", lr_NCHW))
    sr_HWC = sr_NCHW[0, :, : height * scale, : width * scale].transpose(1, 2, 0)
    if inside:
        return np.ascontiguousarray(sr_HWC)
    levels = np.clip(sr_HWC, 0, 1)
    levels *= 255
    np.rint(levels, out=levels)  # in place: an image can be large
    return np.ascontiguousarray(levels, dtype=np.uint8)
