"""A Jetson: the host writes a typed ONNX, the Jetson's TensorRT builds and runs the engine.

The host needs no TensorRT and simulates the pixels; `open` on the Jetson needs numpy and JetPack's
tensorrt alone. TensorRT 10 (JetPack 6.1) and 11 (JetPack 7.2) take the same graphs: what differs
between them is settled where the engine is built (targets/_tensorrt/engine.py). It has not run on
a Jetson yet.
"""

from __future__ import annotations

from pathlib import Path

from mipkd.core.errors import MipkdError, MissingError
from mipkd.core.records import Built, TargetInfo
from targets._tensorrt.cuda import gpu, is_jetson
from targets._tensorrt.engine import Flavour, Profile, refuse_old
from targets._tensorrt.target import MAKERS, TensorRt, facts
from targets.base import BuildRequest, version_of

_NO_GPU = "the GPU does not answer; sudo usermod -aG video,render $USER, and log in again"


class Jetson(TensorRt):
    """TensorRT of a Jetson's JetPack."""

    @property
    def simulated(self) -> bool:
        """Everywhere but on a Jetson."""
        return not is_jetson()

    def why_not(self) -> str:
        """On a Jetson its TensorRT and GPU; elsewhere onnxruntime, which simulates."""
        if self.simulated:
            found = version_of("onnxruntime")
            return "" if found else "onnxruntime is not installed; pip install onnxruntime"
        missing = []
        try:
            self._flavour.load()
        except MipkdError as error:
            missing.append(f"{error.what}; {error.hint}")
        if gpu() is None:
            missing.append(_NO_GPU)
        return "; and ".join(missing)

    def versions(self) -> dict[str, str]:
        """What makes the graph, and on a Jetson what builds and runs the engine."""
        made = facts(*MAKERS)
        return made if self.simulated else {"tensorrt": self._flavour.load().__version__, **made}

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.onnx in its final types; the engine is built where it is opened.

        Raises:
            UnsupportedError: the Jetson's TensorRT is too old for it.
            MissingError: the Jetson has none.
        """
        if request.on and not request.on.simulated:
            _refuse_old(request.on)
        return super().build(request)

    def _prepare(self, file: Path, data: bytes, profile: Profile) -> tuple[str, ...]:
        return ("the engine is built on the Jetson, when it is first opened there",)


def _refuse_old(on: TargetInfo) -> None:
    """Refuse a Jetson that could not build an engine from what is written for it."""
    if found := on.versions.get("tensorrt"):
        refuse_old(found, f"jetson: {on.host.id}")
        return
    raise MissingError(
        f"jetson: {on.host.id} reports no TensorRT: {on.why_not or 'no reason given'}",
        hint="there: sudo apt install python3-libnvinfer (JetPack 6.1 or later)",
    )


TARGET = Jetson(
    Flavour(
        name="tensorrt",
        modules=("tensorrt",),
        install="sudo apt install python3-libnvinfer, "
        "and in a venv: python3 -m venv --system-site-packages",
        without_gpu=False,
        install_int8='pip install "mipkd-pipeline[jetson]"',
    ),
    name="jetson",
)
