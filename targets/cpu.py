"""ONNX Runtime on this machine's CPU: FP32, and INT8 with unsigned activations.

`open` needs numpy and onnxruntime alone; `build` needs the host's onnx too.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.records import Built, Graph, PatchSet, QuantPlan, Rounding, TargetInfo
from targets._x86 import saturates

if TYPE_CHECKING:
    from targets._ort_tuner import OrtTuner
    from targets.base import FloatArray

# A spinning pool of one session would take the cores from the next one measured.
_OPTIONS = {"session.intra_op.allow_spinning": "0"}


class OrtSession:
    """An ONNX Runtime session on the CPU provider."""

    def __init__(self, model: Path | bytes, options: dict[str, str]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in options.items():
            settings.add_session_config_entry(name, value)
        self._session: Any = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            settings,
            providers=["CPUExecutionProvider"],
        )
        image = self._session.get_inputs()[0]
        self._input, self.takes_bytes = image.name, image.type == "tensor(uint8)"

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W)."""
        (image,) = self._session.run(None, {self._input: lr_NCHW})
        return image  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drop the session and its threads."""
        self._session = None


class Cpu:
    """ONNX Runtime's CPU provider."""

    name = "cpu"
    makes_pixels = True
    simulated = False

    def precisions(self) -> tuple[str, ...]:
        """FP32 and INT8; the CPU provider has no fast 16-bit convolutions."""
        return ("fp32", "int8")

    def why_not(self) -> str:
        """Missing only where onnxruntime is."""
        try:
            version("onnxruntime")
        except PackageNotFoundError:
            return "onnxruntime is not installed; pip install onnxruntime"
        return ""

    def versions(self) -> dict[str, str]:
        """onnxruntime and numpy."""
        return {name: version(name) for name in ("onnxruntime", "numpy")}

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
        """`out`/model.onnx, quantised for "int8"."""
        out.mkdir(parents=True, exist_ok=True)
        file = out / "model.onnx"
        notes: tuple[str, ...] = ()
        if precision == "fp32":
            shutil.copyfile(graph.file, file)
        elif precision == "int8":
            from targets._ort_quantize import quantized

            given = _given(calibration)
            notes = quantized(graph, given, file, saturates=saturates(on), plan=plan)
        else:
            raise UnsupportedError(f"cpu: no precision {precision!r}", hint="known: fp32, int8")
        return Built(
            target=self.name,
            precision=precision,
            role=graph.role,
            file=file,
            size_bytes=file.stat().st_size,
            scale=graph.scale,
            multiple=graph.multiple,
            options=dict(_OPTIONS),
            notes=notes,
        )

    def on_bytes(self, built: Built) -> Built:
        """The model on uint8."""
        import onnx

        from targets._bytes import NOTE, onnx_on_bytes

        onnx.save(onnx_on_bytes(onnx.load(built.file)), built.file)
        return replace(built, size_bytes=built.file.stat().st_size, notes=(*built.notes, NOTE))

    def tuner(
        self, graph: Graph, patches: PatchSet, out: Path, rounding: Rounding | None = None
    ) -> OrtTuner | None:
        """For a search over its layers; None for window attention, where INT8 is slower."""
        from calibration.scopes import onnx_scopes
        from targets._ort_tuner import OrtTuner

        if onnx_scopes(graph.file).attention:
            return None
        return OrtTuner(
            graph,
            patches,
            out,
            saturates=saturates(None),
            options=dict(_OPTIONS),
            rounding=rounding,
        )

    def open(self, built: Built) -> OrtSession:
        """A session on all cores."""
        return OrtSession(built.file, built.options)


def _given(calibration: PatchSet | None) -> PatchSet:
    if calibration is None:
        raise MissingError("cpu int8 needs calibration patches", hint="give photos: --data")
    return calibration


TARGET = Cpu()
