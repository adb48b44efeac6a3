"""Engines from ONNX: one builder for TensorRT 10, TensorRT 11 and TensorRT-RTX.

All three offer the same Python API. Networks are strongly typed: the graph's own types are the
precision, and there are no builder flags for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from mipkd.core.errors import MissingError, StageError, UnsupportedError
from targets._tensorrt.cuda import Gpu, gpu
from targets._tensorrt.profile import Profile

if TYPE_CHECKING:
    from pathlib import Path

    from targets._tensorrt.api import Api, Builder, IBuilderConfig, RtxBuilderConfig
    from targets._tensorrt.api import INetworkDefinition as Network

OLDEST = 10  # the first TensorRT with strongly typed networks and dynamic shapes as used here
ASSUMED_SM = "86"  # without a GPU: Ampere, as on Jetson Orin and much in use

_ABOUT_TYPES = re.compile(r"u?int8|zero.?point|\btypes?\b|\bconverting\b|\bcast", re.IGNORECASE)


@dataclass(frozen=True)
class Flavour:
    """One of NVIDIA's packages with this API."""

    name: str
    modules: tuple[str, ...]  # the first that is installed is used
    install: str
    without_gpu: bool  # whether it builds on a machine without a GPU
    install_int8: str = "pip install nncf"  # what quantises a graph for it

    def found(self) -> str:
        """The module that is installed, "" if none is."""
        return next((m for m in self.modules if importlib.util.find_spec(m)), "")

    def load(self) -> Api:
        """The imported module.

        Raises:
            MissingError: not installed, or its libraries are not found.
            UnsupportedError: too old.
        """
        if not self.found():
            raise MissingError(f"{self.name}: the package is not installed", hint=self.install)
        try:
            module = importlib.import_module(self.found())
        except (ImportError, OSError) as error:
            raise MissingError(f"{self.name}: {error}", hint=self.install) from error
        if self.name == "tensorrt":
            refuse_old(module.__version__, "tensorrt: this machine")
        return cast("Api", module)


def refuse_old(version: str, where: str) -> None:
    """
    Raises:
        UnsupportedError: TensorRT `version`, which is `where`, is older than 10.
    """
    if int(version.partition(".")[0]) < OLDEST:
        raise UnsupportedError(
            f"{where} has TensorRT {version}, which is too old",
            hint=f"TensorRT {OLDEST} or later; on a Jetson, JetPack 6.1 or later has it",
        )


def key(trt: Api, onnx: bytes, profile: Profile, dla: int | None = None) -> str:
    """The cache key of an engine: the GPU or the DLA core, versions, the graph and the profile."""
    device = gpu() or Gpu(ASSUMED_SM, "none", "")
    digest = hashlib.sha256(onnx).hexdigest()
    facts = (trt.__name__, trt.__version__, device.sm, device.cuda, device.jetpack, device.name)
    whole = hashlib.sha256(repr((facts, digest, str(profile), dla)).encode()).hexdigest()
    return f"sm{device.sm}-trt{trt.__version__}-{whole[:16]}"


def engine(
    trt: Api, onnx: bytes, profile: Profile, *, cache: Path | None, dla: int | None = None
) -> bytes:
    """The plan of a graph for this machine's GPU, from the folder `cache` if it was built before.

    What is built is left there, with the builder's timings; without a folder nothing is kept. With
    a core in `dla` that computes what it can, and the GPU the rest.
    """
    if cache is None:
        return build(trt, onnx, profile, dla=dla)
    file, device, timings = cache / f"{key(trt, onnx, profile, dla)}.plan", gpu(), None
    if file.is_file():
        return file.read_bytes()
    if device and trt.__name__ == "tensorrt":  # TensorRT-RTX times nothing while building
        timings = cache / f"timings-sm{device.sm}-trt{trt.__version__}"
    plan = build(trt, onnx, profile, timings=timings, dla=dla)
    _write(file, plan)
    return plan


def build(
    trt: Api,
    onnx: bytes,
    profile: Profile,
    *,
    timings: Path | None = None,
    dla: int | None = None,
) -> bytes:
    """Parse a graph and build its plan.

    Raises:
        UnsupportedError: the parser rejects the graph, or reads its types otherwise than meant.
        StageError: the builder fails.
    """
    said = _log(trt)
    builder = trt.Builder(said)
    if builder is None:
        raise StageError(f"{trt.__name__}: no builder: {said.last()}", hint="see the GPU's driver")
    # TensorRT 10 needs the flag; 11 has no other kind of network and may drop its name.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, said)
    if not parser.parse(onnx):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        first = f"{errors[0].node_name()}: {errors[0].desc()}" if errors else said.last()
        raise UnsupportedError(
            f"{trt.__name__}: the parser rejects the graph: {first}",
            hint="run the model on another target, or replace the operator",
        )
    said.refuse_doubts(trt.__name__)
    config = _config(trt, builder, network, profile)
    if dla is not None:
        _use_dla(trt, config, dla)
    cache = None
    if timings:
        cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise StageError(
            f"{trt.__name__}: the builder failed: {said.last()}",
            hint="run the model on another target, or in fp32",
        )
    said.refuse_doubts(trt.__name__)
    if timings and cache:
        _write(timings, bytes(cache.serialize()))
    return bytes(plan)


def _config(trt: Api, builder: Builder, network: Network, profile: Profile) -> IBuilderConfig:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # or "fp32" would multiply with 10 bits
    if trt.__name__.startswith("tensorrt_rtx"):
        _build_for_one(trt, cast("RtxBuilderConfig", config))
    image = network.get_input(0)
    count, channels = (max(1, side) for side in tuple(image.shape)[:2])
    shapes = builder.create_optimization_profile()
    least, usual, most = ((count, channels, *size) for size in profile.sizes)
    shapes.set_shape(image.name, least, usual, most)
    config.add_optimization_profile(shapes)
    return config


def _build_for_one(trt: Api, config: RtxBuilderConfig) -> None:
    """For this GPU, or without one for a usual one."""
    config.num_compute_capabilities = 1
    built_for = "CURRENT" if gpu() else f"SM{ASSUMED_SM}"
    config.set_compute_capability(getattr(trt.ComputeCapability, built_for), 0)


def _use_dla(trt: Api, config: IBuilderConfig, core: int) -> None:
    """Everything that a DLA core can compute there, the rest on the GPU."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _log(trt: Api) -> Any:
    """A logger that keeps warnings and errors instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                self.messages.append(message)

        def last(self) -> str:
            return self.messages[-1] if self.messages else "no reason given"

        def refuse_doubts(self, name: str) -> None:
            if doubts := doubtful(self.messages):
                raise UnsupportedError(
                    f"{name}: the graph is not computed as it is written: {doubts[0]}",
                    hint="the graph's types or zero points are not what TensorRT computes with",
                )

    return Log()


def doubtful(messages: list[str]) -> list[str]:
    """The messages about types or zero points that change what is computed."""
    return [message for message in messages if _ABOUT_TYPES.search(message)]


def _write(file: Path, data: bytes) -> None:
    """All or nothing; a cache that cannot be written is no failure."""
    with contextlib.suppress(OSError):
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        partial.write_bytes(data)
        partial.replace(file)
