"""ncnn: the runtime of many Android and desktop apps, on this machine's CPU or a Vulkan device.

`open` needs numpy and ncnn alone; `build` needs pnnx, which converts ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mipkd.core.precision import executed_precision
from targets._ncnn.convert import INPUT, INSTALL, OUTPUT, convert_graph, find_pnnx
from targets._ncnn.session import NcnnSession, count_kernels
from targets._ncnn.vulkan import is_software, why_no_device
from targets.base import BuildRequest, Target, check_options, is_installed, version_of

if TYPE_CHECKING:
    from mipkd.core.records import Built

# Of the files, and of the blobs at both ends. Real-ESRGAN-ncnn and upscayl read the scale from the
# file's name; both give RGB in 0 to 1.
_NAMES = {
    "pnnx": ("model", (INPUT, OUTPUT)),
    "realesrgan": ("mipkd-x{scale}", ("data", "output")),
}


class Ncnn(Target):
    """ncnn with FP32, and with weights, and where the device can all values, stored in FP16."""

    def __init__(self, variant: str = "") -> None:
        self.name = f"ncnn:{variant}" if variant else "ncnn"
        self._vulkan = variant == "vulkan"

    def variants(self) -> tuple[str, ...]:
        """The first Vulkan device."""
        return ("vulkan",)

    def variant(self, name: str) -> Ncnn:
        """ncnn on that device."""
        return Ncnn(name)

    @property
    def simulated(self) -> bool:
        """Only where Vulkan is a program on the CPU."""
        return self._vulkan and not self.why_not() and is_software()

    def precisions(self) -> tuple[str, ...]:
        """FP32 and FP16; the tools that quantise for ncnn are in no Python package."""
        return ("fp32", "fp16")

    def why_not(self) -> str:
        """ncnn can be missing, and a Vulkan device."""
        if not is_installed("ncnn"):
            return f"ncnn is not installed; {INSTALL}"
        return why_no_device() if self._vulkan else ""

    def why_not_build(self, precision: str) -> str:
        """pnnx converts, and ncnn knows its own layers, on any machine."""
        if find_pnnx() is None:
            return f"pnnx is not installed; {INSTALL}"
        return "" if is_installed("ncnn") else f"ncnn is not installed; {INSTALL}"

    def versions(self) -> dict[str, str]:
        """ncnn, numpy, and pnnx where it is installed."""
        found = {name: version_of(name) for name in ("ncnn", "numpy", "pnnx")}
        return {name: known for name, known in found.items() if known}

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.param and model.bin, or as `request.ncnn_names` has them."""
        self.check(request)
        request.out.mkdir(parents=True, exist_ok=True)
        stem, blobs = _NAMES[request.ncnn_names]
        file = request.out / f"{stem.format(scale=request.graph.scale)}.param"
        convert_graph(request.graph, file, fp16=request.precision == "fp16", blobs=blobs)
        built = self.describe(request, file)
        if not request.is_local or self._vulkan:
            return built
        executes = executed_precision(count_kernels(built))
        return self.describe(request, file, executes=executes)

    def count_kernels(self, built: Built) -> dict[str, int]:
        """Of the CPU's layers; Vulkan does not tell."""
        return {} if self._vulkan else count_kernels(built)

    def open(self, built: Built) -> NcnnSession:
        """A session on all fast cores, or on the Vulkan device."""
        check_options(built.options, self.options, self.name)
        return NcnnSession(built, vulkan=self._vulkan)


TARGET = Ncnn()
