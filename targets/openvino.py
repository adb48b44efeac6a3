"""OpenVINO on Intel's CPUs, GPUs and NPUs: every precision set explicitly, INT8 by NNCF.

`openvino` is the CPU, for latency; other devices and hints are variants, such as `openvino:gpu`.
`open` needs numpy and openvino alone; `build` needs the host's nncf too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.quiet import quiet
from mipkd.core.records import Built, Graph, PatchSet, QuantPlan, Rounding, TargetInfo
from targets import _ov
from targets._ov_ends import last_bias_in_fp32
from targets._ov_session import CACHE, PIXELS, SHAPES, LatencySession, ThroughputSession
from targets._x86 import saturates
from targets.base import files_of, version_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from targets._ov_tuner import OvTuner

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
_ENGINES = "engines"


class OpenVino:
    """One of OpenVINO's devices, compiled for latency or for throughput."""

    makes_pixels = True
    simulated = False

    def __init__(self, name: str, device: str, hint: str) -> None:
        self.name = name
        self._device, self._hint = device, hint

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
        can = _ov.capabilities(self._device)
        fast = [name for name in ("bf16", "fp16") if name.upper() in can][:1]
        return tuple(p for p in ("fp32", *fast, "int8") if p.upper() in can)

    def why_not(self) -> str:
        """The package or the device; where models only run, nncf is not needed."""
        if not version_of("openvino"):
            return f"openvino is not installed; {_ov.INSTALL}"
        return _ov.absent(self._device)

    def versions(self) -> dict[str, str]:
        """openvino, numpy, nncf where it is installed, and an accelerator's name and driver."""
        found = {name: version_of(name) for name in ("openvino", "nncf", "numpy")}
        known = {name: one for name, one in found.items() if one}
        return known if self._device == "CPU" else {**known, **_ov.facts(self._device)}

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
        """`out`/model.xml and .bin: INT8 weights, FP16 ones for "fp16", else FP32 ones."""
        if on is None and (reason := self.why_not()):
            raise MissingError(f"{self.name}: {reason}")
        offered = on.precisions if on else self.precisions()
        if precision not in offered:
            raise UnsupportedError(
                f"{self.name}: {precision!r} is not computed natively by the {self._device}",
                hint="known: " + ", ".join(offered),
            )
        out.mkdir(parents=True, exist_ok=True)
        file = out / "model.xml"
        rest = plan.rest if plan else _float_beside(precision, offered)
        notes = self._convert(graph, precision, calibration, file, rest, plan, on)
        return Built(
            target=self.name,
            precision=precision,
            role=graph.role,
            file=file,
            size_bytes=file.stat().st_size + file.with_suffix(".bin").stat().st_size,
            scale=graph.scale,
            multiple=graph.multiple,
            options=self._options(rest),
            notes=(*notes, *self._notes()),
        )

    def on_bytes(self, built: Built) -> Built:
        """The model on uint8, by OpenVINO's own pre- and post-processing."""
        from targets._bytes import NOTE, openvino_on_bytes

        with quiet():
            openvino = _ov.package()
            model = openvino_on_bytes(_ov.core().read_model(str(built.file)))
            made = built.file.with_name("bytes") / built.file.name
            openvino.save_model(model, str(made), compress_to_fp16=built.precision == "fp16")
        del model  # which reads its weights from the file that is replaced
        for file in (made, made.with_suffix(".bin")):
            file.replace(built.file.with_name(file.name))
        made.parent.rmdir()
        size = sum(file.stat().st_size for file in files_of(built))
        options = built.options | {PIXELS: "uint8"}
        return replace(built, size_bytes=size, options=options, notes=(*built.notes, NOTE))

    def tuner(
        self, graph: Graph, patches: PatchSet, out: Path, rounding: Rounding | None = None
    ) -> OvTuner | None:
        """For a search over the CPU's layers.

        None for other devices and for window attention, where INT8 is slower: a fixed recipe.
        """
        from calibration.scopes import onnx_scopes
        from targets._ov_tuner import OvTuner

        if (self._device, self._hint) != ("CPU", "LATENCY") or onnx_scopes(graph.file).attention:
            return None

        options = {p: self._options(p) for p in self.precisions() if p != "int8"}
        given = self._given(patches)
        return OvTuner(
            graph,
            given,
            out,
            device=self._device,
            options=options,
            saturates=self._saturates(None),
            rounding=rounding,
        )

    def open(self, built: Built) -> LatencySession | ThroughputSession:
        """The model on the whole device; with fixed shapes it is compiled at the first frame."""
        if self._hint == "THROUGHPUT":
            return ThroughputSession(built.file, self._device, built.options, built.scale)
        return LatencySession(built.file, self._device, built.options)

    def _convert(
        self,
        graph: Graph,
        precision: str,
        patches: PatchSet | None,
        file: Path,
        rest: str,
        plan: QuantPlan | None,
        on: TargetInfo | None,
    ) -> tuple[str, ...]:
        notes: tuple[str, ...] = ()
        with quiet():
            openvino = _ov.package()
            model: Any = openvino.convert_model(str(graph.file))
            if precision == "int8":
                from targets._ov_floats import name_as_in
                from targets._ov_quantize import quantized

                name_as_in(model, graph.file)
                given = self._given(patches)
                model, notes = quantized(
                    model,
                    given,
                    device=self._device,
                    rest=rest,
                    file=graph.file,
                    saturates=self._saturates(on),
                    plan=plan,
                )
            if rest != "fp32":
                model = last_bias_in_fp32(model)
            # By default it would write FP16 weights, and "fp32" would not be FP32.
            openvino.save_model(model, str(file), compress_to_fp16=precision == "fp16")
        return notes

    def _saturates(self, on: TargetInfo | None) -> bool:
        """An accelerator is taken to be as careful as NNCF takes it to be."""
        return self._device != "CPU" or saturates(on)

    def _given(self, patches: PatchSet | None) -> PatchSet:
        if patches is None:
            what = f"{self.name} int8 needs calibration patches"
            raise MissingError(what, hint="give photos: --data")
        if not version_of("nncf"):
            what = f"{self.name} int8 needs nncf, which is not installed"
            raise MissingError(what, hint=_ov.INSTALL)
        return patches

    @property
    def _slow_to_compile(self) -> bool:
        """GPU and NPU compile for seconds, the NPU for one shape only."""
        return self._device.startswith(("GPU", "NPU"))

    def _options(self, rest: str) -> dict[str, str]:
        options = {"PERFORMANCE_HINT": self._hint}
        if self._device != "NPU":  # which has one float type and not always this property
            options["INFERENCE_PRECISION_HINT"] = _HINT[rest]
        if self._device == "AUTO":  # first frames on the CPU would be of another device
            options |= {"ENABLE_STARTUP_FALLBACK": "NO", "ENABLE_RUNTIME_FALLBACK": "NO"}
        if self._slow_to_compile:
            options |= {SHAPES: "fixed", CACHE: _ENGINES}
        elif (self._device, self._hint) == ("CPU", "LATENCY"):
            options[SHAPES] = "fixed"  # RLFN in INT8: 0.82 of the time that any shape takes
        return options

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self._slow_to_compile:
            notes.append(
                f"compiled for each input size at its first frame, kept in {_ENGINES}/: a cold "
                "start holds the compilation the first time, and reads it from there later"
            )
        if self._hint == "THROUGHPUT":
            notes.append(
                "compiled for frames per second: latencies are those of one frame alone, "
                "which gets a part of the device"
            )
        return tuple(notes)


def _float_beside(precision: str, offered: Sequence[str]) -> str:
    """What is computed in where nothing is quantised: for INT8 the device's fastest float."""
    if precision != "int8":
        return precision
    return next(p for p in ("bf16", "fp16", "fp32") if p in offered)


TARGET = OpenVino("openvino", "CPU", "LATENCY")
