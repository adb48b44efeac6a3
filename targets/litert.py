"""LiteRT (once TensorFlow Lite) on this machine's CPU, by XNNPACK; its files run on phones too.

`open` needs numpy and ai-edge-litert alone; `build` needs the host's onnx too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipkd.core.errors import MissingError
from mipkd.core.precision import executed_precision
from targets._litert.session import OPTIONS, LiteRtSession, count_kernels
from targets.base import BuildRequest, Feature, Target, version_of

if TYPE_CHECKING:
    from mipkd.core.records import Built
    from targets._litert.tuner import LiteRtTuner

_INSTALL = 'pip install "mipkd-pipeline[litert]"'


class LiteRt(Target):
    """LiteRT's interpreter on the CPU."""

    name = "litert"
    features = frozenset({Feature.FLOAT_SEARCH, Feature.UINT8_IO, Feature.INT8_IO})
    options = OPTIONS

    def precisions(self) -> tuple[str, ...]:
        """FP32, weights in FP16, INT8."""
        return ("fp32", "fp16", "int8")

    def why_not(self) -> str:
        """Only ai-edge-litert can be missing."""
        found = version_of("ai-edge-litert")
        return "" if found else f"ai-edge-litert is not installed; {_INSTALL}"

    def why_not_build(self, precision: str) -> str:
        """The schema of its files comes with the runtime."""
        return self.why_not()

    def versions(self) -> dict[str, str]:
        """ai-edge-litert and numpy."""
        return {name: version_of(name) for name in ("ai-edge-litert", "numpy")}

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.tflite."""
        self.check(request)
        if reason := self.why_not():
            raise MissingError(f"{self.name}: {reason}")
        from targets._litert.delegates import find_refusals
        from targets._litert.flatbuffer import write
        from targets._litert.from_onnx import convert
        from targets._litert.session import at_size
        from targets._litert.stored import BYTES_NOTE, FP16_NOTE, store_fp16, take_bytes

        request.out.mkdir(parents=True, exist_ok=True)
        file = request.out / "model.tflite"
        notes: list[str] = []
        net = convert(request.graph.file, request.graph.multiple)
        if request.precision == "int8":
            from targets._litert.quantize import quantize_graph

            net, found = quantize_graph(request, net)
            notes += found
        elif request.precision == "fp16":
            store_fp16(net)
            notes.append(FP16_NOTE)
        if request.pixels != "float32":
            take_bytes(net, request.pixels)
            notes.append(BYTES_NOTE.format(request.pixels))
        side = -(-_SIDE // request.graph.multiple) * request.graph.multiple
        content = at_size(write(net), (1, side, side, 3))
        file.write_bytes(content)
        executes = ""
        if request.is_local:
            executes = executed_precision(count_kernels(file, request.graph.multiple))
        refused = find_refusals(content)
        return self.describe(request, file, executes=executes, notes=notes, refused_by=refused)

    def tuner(self, request: BuildRequest) -> LiteRtTuner:
        """Candidates for a search."""
        from targets._litert.tuner import LiteRtTuner

        return LiteRtTuner(request)

    def open(self, built: Built) -> LiteRtSession:
        """A session on all cores."""
        return LiteRtSession(built.file, built.options)

    def count_kernels(self, built: Built) -> dict[str, int]:
        """Of a small image's model."""
        return count_kernels(built.file, built.multiple)


_SIDE = 128  # LR pixels of the image whose sizes a file states
TARGET = LiteRt()
