"""ONNX Runtime on this machine's CPU: FP32, and INT8 with unsigned activations.

`open` needs numpy and onnxruntime alone; `build` needs the host's onnx too.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from calibration.vnni import saturates
from mipkd.core.precision import executed_precision
from targets._onnxruntime.session import OPTIONS, OrtSession, count_kernels
from targets.base import BuildRequest, Feature, Target, version_of

if TYPE_CHECKING:
    from mipkd.core.records import Built
    from targets._onnxruntime.tuner import OrtTuner

# A spinning pool of one session would take the cores from the next one measured.
_OPTIONS = {"session.intra_op.allow_spinning": "0"}


class Cpu(Target):
    """ONNX Runtime's CPU provider."""

    name = "cpu"
    features = frozenset({Feature.FLOAT_SEARCH, Feature.UINT8_IO})
    options = OPTIONS

    def precisions(self) -> tuple[str, ...]:
        """FP32 and INT8; the CPU provider has no fast 16-bit convolutions."""
        return ("fp32", "int8")

    def why_not(self) -> str:
        """Only onnxruntime can be missing."""
        found = version_of("onnxruntime")
        return "" if found else "onnxruntime is not installed; pip install onnxruntime"

    def versions(self) -> dict[str, str]:
        """onnxruntime and numpy."""
        return {name: version_of(name) for name in ("onnxruntime", "numpy")}

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.onnx, quantised for "int8"."""
        self.check(request)
        request.out.mkdir(parents=True, exist_ok=True)
        file = request.out / "model.onnx"
        notes: tuple[str, ...] = ()
        if request.precision == "int8":
            from targets._onnxruntime.quantize import quantize_graph

            notes = quantize_graph(request, file, saturates=saturates(request.on))
        else:
            shutil.copyfile(request.graph.file, file)
        executes = ""
        if request.is_local:
            executes = executed_precision(count_kernels(file, _OPTIONS, request.graph.multiple))
        if request.pixels == "uint8":
            from targets._onnx.uint8_io import NOTE, give_uint8_io

            give_uint8_io(file)
            notes = (*notes, NOTE)
        return self.describe(request, file, executes=executes, options=dict(_OPTIONS), notes=notes)

    def tuner(self, request: BuildRequest) -> OrtTuner | None:
        """Candidates for a search; None for window attention, where INT8 is slower."""
        from calibration.sensitive_layers import sensitive_layers_in_file
        from targets._onnxruntime.tuner import OrtTuner

        if sensitive_layers_in_file(request.graph.file).attention:
            return None
        return OrtTuner(request, saturates=saturates(request.on), options=_OPTIONS)

    def count_kernels(self, built: Built) -> dict[str, int]:
        """Of one image's run."""
        return count_kernels(built.file, built.options, built.multiple)

    def open(self, built: Built) -> OrtSession:
        """A session on all cores."""
        return OrtSession(built.file, built.options)


TARGET = Cpu()
