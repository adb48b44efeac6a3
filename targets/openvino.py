"""OpenVINO on Intel's CPUs, GPUs and NPUs: every precision set explicitly, INT8 by NNCF.

`openvino` is the CPU, for latency; other devices and hints are variants, such as `openvino:gpu`.
`open` needs numpy and openvino alone; `build` needs the host's nncf too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calibration.vnni import saturates
from mipkd.core.errors import MissingError
from mipkd.core.precision import PRECISIONS, executed_precision
from mipkd.core.quiet import quiet
from targets._onnx.uint8_io import NOTE
from targets._openvino import devices
from targets._openvino.last_bias import last_bias_in_fp32
from targets._openvino.session import (
    CACHE,
    OPTIONS,
    PIXELS,
    SHAPES,
    LatencySession,
    ThroughputSession,
    count_kernels,
)
from targets._openvino.stable_names import names_in, number_in_order
from targets._openvino.uint8_io import with_uint8_io
from targets.base import BuildRequest, Feature, Target, is_installed, version_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mipkd.core.records import Built
    from targets._openvino.quantize import NncfInt8
    from targets._openvino.tuner import OvTuner

_VARIANTS = {
    "gpu": ("GPU", "LATENCY"),
    "gpu.1": ("GPU.1", "LATENCY"),  # a card beside the one in the processor
    "npu": ("NPU", "LATENCY"),
    "auto": ("AUTO", "LATENCY"),
    "throughput": ("CPU", "THROUGHPUT"),
    "gpu-throughput": ("GPU", "THROUGHPUT"),
    "npu-throughput": ("NPU", "THROUGHPUT"),
}
_HINT = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVino(Target):
    """One of OpenVINO's devices, compiled for latency or for throughput."""

    options = OPTIONS

    def __init__(self, name: str, device: str, hint: str) -> None:
        self.name = name
        self._device, self._hint = device, hint
        several = {Feature.FRAMES_IN_FLIGHT} if hint == "THROUGHPUT" else set()
        self.features = frozenset({Feature.FLOAT_SEARCH, Feature.UINT8_IO} | several)

    def variants(self) -> Sequence[str]:
        """Devices, and the hint of those that run several frames at a time."""
        return tuple(_VARIANTS)

    def variant(self, name: str) -> OpenVino:
        """Such as "gpu"."""
        return OpenVino(f"openvino:{name}", *_VARIANTS[name])

    def precisions(self) -> tuple[str, ...]:
        """What the device computes natively: FP32, one of BF16 and FP16, INT8.

        An NPU has no FP32, and FP16 comes first there: the speed of others is held against it.
        Quality is always held against the FP32 of ONNX Runtime.
        """
        can = devices.capabilities(self._device)
        fast = [name for name in ("bf16", "fp16") if name.upper() in can][:1]
        return tuple(p for p in ("fp32", *fast, "int8") if p.upper() in can)

    def why_not(self) -> str:
        """The package or the device is missing; to run models nncf is not needed."""
        if not version_of("openvino"):
            return f"openvino is not installed; {devices.INSTALL}"
        return devices.why_absent(self._device)

    def why_not_build(self, precision: str) -> str:
        """openvino converts every graph, and nncf quantises it."""
        needed = ("openvino", "nncf") if precision == "int8" else ("openvino",)
        lacking = next((name for name in needed if not is_installed(name)), "")
        return f"needs {lacking}, which is not installed; {devices.INSTALL}" if lacking else ""

    def versions(self) -> dict[str, str]:
        """openvino, numpy, nncf where it is installed, and an accelerator's name and driver."""
        found = {name: version_of(name) for name in ("openvino", "nncf", "numpy")}
        known = {name: one for name, one in found.items() if one}
        return known if self._device == "CPU" else {**known, **devices.facts(self._device)}

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.xml and .bin: INT8 weights, FP16 ones for "fp16", else FP32 ones."""
        on, precision = request.on, request.precision
        if request.is_local and (reason := self.why_not()):
            raise MissingError(f"{self.name}: {reason}")
        offered = on.precisions if on else self.precisions()
        self.check(request, known=offered)
        request.out.mkdir(parents=True, exist_ok=True)
        file = request.out / "model.xml"
        other = request.plan.rest if request.plan else _float_beside(precision, offered)
        with quiet():
            model, notes = self._convert(request, other)
            number_in_order(model, names_in(request.graph.file))
            # By default it would write FP16 weights, and "fp32" would not be FP32.
            fp16 = precision == "fp16"
            devices.package().save_model(model, str(file), compress_to_fp16=fp16)
        options = self._options(other)
        executes = ""
        if request.is_local:
            kernels = count_kernels(file, self._device, options, request.graph.multiple)
            executes = executed_precision(kernels)
        if request.pixels == "uint8":
            options[PIXELS] = "uint8"
            notes = (*notes, NOTE)
        return self.describe(
            request, file, executes=executes, options=options, notes=(*notes, *self._notes())
        )

    def tuner(self, request: BuildRequest) -> OvTuner | None:
        """Candidates for a search, on the CPU.

        None for other devices and for window attention, where INT8 is slower: a fixed recipe.
        """
        from calibration.sensitive_layers import sensitive_layers_in_file
        from targets._openvino.tuner import OvTuner

        searched = (self._device, self._hint) == ("CPU", "LATENCY")
        if not searched or sensitive_layers_in_file(request.graph.file).attention:
            return None
        options = {p: self._options(p) for p in self.precisions() if PRECISIONS[p].is_float}
        return OvTuner(self._int8(request), request.out, options)

    def open(self, built: Built) -> LatencySession | ThroughputSession:
        """The model on the whole device; with fixed shapes it is compiled at the first frame."""
        if self._hint == "THROUGHPUT":
            return ThroughputSession(built.file, self._device, built.options, built.scale)
        return LatencySession(built.file, self._device, built.options)

    def count_kernels(self, built: Built) -> dict[str, int]:
        """Of the model compiled for this device."""
        return count_kernels(built.file, self._device, built.options, built.multiple)

    def _convert(self, request: BuildRequest, other: str) -> tuple[Any, tuple[str, ...]]:
        """The model, with what is not quantised in `other`, and notes."""
        notes: tuple[str, ...] = ()
        model: Any
        if request.precision != "int8":
            model = devices.package().convert_model(str(request.graph.file))
        else:
            from calibration.sensitive_layers import refuse_nothing_quantized
            from targets._openvino.fake_quantize import operations

            int8 = self._int8(request)
            model = int8.convert()
            if request.plan:
                model, notes = int8.quantize_by_plan(model, request.plan)
            else:
                model, notes = int8.quantize_by_recipe(model, other)
            refuse_nothing_quantized(op.get_type_name() for op in operations(model))
        if other != "fp32":
            model = last_bias_in_fp32(model)
        return with_uint8_io(model) if request.pixels == "uint8" else model, notes

    def _int8(self, request: BuildRequest) -> NncfInt8:
        from targets._openvino.quantize import NncfInt8

        assert request.patches is not None, "accepted with them"
        if reason := self.why_not_build("int8"):
            what, _, cure = reason.partition("; ")
            raise MissingError(f"{self.name} int8 {what}", hint=cure)
        # An accelerator is taken to be as careful as NNCF takes it to be.
        careful = self._device != "CPU" or saturates(request.on)
        patches, scheme = request.patches, request.scheme
        return NncfInt8(request.graph.file, patches, self._device, careful, scheme)

    @property
    def _slow_to_compile(self) -> bool:
        """GPU and NPU compile for seconds, the NPU for one shape only."""
        return self._device.startswith(("GPU", "NPU"))

    def _options(self, other: str) -> dict[str, str]:
        options = {"PERFORMANCE_HINT": self._hint}
        if self._device != "NPU":  # which has one float type and not always this property
            options["INFERENCE_PRECISION_HINT"] = _HINT[other]
        if self._device == "AUTO":  # first frames on the CPU would be of another device
            options |= {"ENABLE_STARTUP_FALLBACK": "NO", "ENABLE_RUNTIME_FALLBACK": "NO"}
        if self._slow_to_compile:
            options |= {SHAPES: "fixed", CACHE: "user"}
        elif (self._device, self._hint) == ("CPU", "LATENCY"):
            options[SHAPES] = "fixed"  # RLFN in INT8: 0.82 of the time that any shape takes
        return options

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self._slow_to_compile:
            notes.append(
                "compiled for each input size at its first frame, kept in the user's cache: a cold "
                "start holds the compilation the first time, and reads it from there later"
            )
        if self._hint == "THROUGHPUT":
            notes.append(
                "compiled for frames per second, which a stream measures: latencies are those of "
                "one frame alone, which gets a part of the device"
            )
        return tuple(notes)


def _float_beside(precision: str, offered: Sequence[str]) -> str:
    """The precision of what is not quantised: for INT8 the device's fastest float."""
    if precision != "int8":
        return precision
    return next(p for p in ("bf16", "fp16", "fp32") if p in offered)


TARGET = OpenVino("openvino", "CPU", "LATENCY")
