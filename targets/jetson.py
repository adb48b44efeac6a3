"""A Jetson: the host writes a typed ONNX, the Jetson's TensorRT builds and runs the engine.

The host needs no TensorRT and simulates the pixels; `open` on the Jetson needs numpy and JetPack's
tensorrt alone. JetPack 6.2.1 has TensorRT 10.3, 7.2.1 has 10.16, and 11.4 needs 7.2.2: what they
read differs (targets/_tensorrt/types.py), and the Jetson says which it has. It has not run on a
Jetson yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mipkd.core.errors import MipkdError, MissingError, UnsupportedError
from mipkd.core.records import Built, TargetInfo
from targets._onnx.outside_files import refuse_outside_files
from targets._tensorrt import engine
from targets._tensorrt.cuda import gpu, is_jetson
from targets._tensorrt.engine import Flavour, refuse_old
from targets._tensorrt.profile import Profile, Size
from targets._tensorrt.session import PlanSession, SimulatedSession, SizeSessions
from targets._tensorrt.target import MAKERS, TensorRt, facts
from targets._tensorrt.types import Parser
from targets._tiles import FixedSizes, Sizes
from targets._user_cache import engine_folder
from targets.base import BuildRequest, Feature, Session, version_of

_NO_GPU = "the GPU does not answer; sudo usermod -aG video,render $USER, and log in again"
_DLA_SINCE = (11, 4, 1)  # TensorRT; 10.7 was the last before, with types of its own
_DLA_IS_IN = "TensorRT 11.4.1 or later of JetPack 7.2.2 or later, on an AGX Orin"


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

    def variants(self) -> tuple[str, ...]:
        """Its DLA cores."""
        return ("dla0", "dla1")

    def variant(self, name: str) -> JetsonDla:
        """Such as "dla0"."""
        return JetsonDla(self._flavour, f"{self.name}:{name}", int(name.removeprefix("dla")))

    def _parser(self, request: BuildRequest) -> Parser:
        """Of the Jetson; of one that is not known here the oldest that is taken."""
        return Parser.of(request.on.versions.get("tensorrt", "") if request.on else "")

    def _prepare(self, file: Path, data: bytes, profile: Profile) -> tuple[str, ...]:
        return ("the engine is built on the Jetson, when it is first opened there",)


class JetsonDla(Jetson):
    """One of an AGX Orin's accelerators, with the GPU for the image's ends. It never ran."""

    features = frozenset({Feature.SIZES})
    options: ClassVar[Mapping[str, str]] = {"sizes": r"(\d+x\d+,?)*", "margin": r"\d+"}

    def __init__(self, flavour: Flavour, name: str, core: int) -> None:
        super().__init__(flavour, name)
        self._core = core

    def precisions(self) -> tuple[str, ...]:
        """FP16: what it has beside INT8, whose Q/DQ have not been tried for it."""
        return ("fp16",)

    def variants(self) -> tuple[str, ...]:
        """None of its own."""
        return ()

    def why_not(self) -> str:
        """What a Jetson needs, and on one a TensorRT and a board with that core."""
        if (reason := super().why_not()) or self.simulated:
            return reason
        trt = self._flavour.load()
        if lacking := _lacks_dla(trt.__version__):
            return lacking
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        cores = builder.num_DLA_cores if builder else 0
        if self._core < cores:
            return ""
        return f"this board has {cores} DLA cores; an AGX Orin has two: --target jetson"

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.onnx in its final types; engines are built where it is opened, one a size.

        Raises:
            UnsupportedError: the Jetson's TensorRT has no DLA, or the graph holds what a DLA does
                not compute.
            MissingError: the Jetson has none.
        """
        self.check(request)
        if request.on and not request.on.simulated:
            _refuse_old(request.on)
            if lacking := _lacks_dla(request.on.versions["tensorrt"]):
                what, _, cure = lacking.partition("; ")
                raise UnsupportedError(f"{self.name}: {request.on.host.id}: {what}", hint=cure)
        return super().build(request)

    def _options(self, request: BuildRequest) -> dict[str, str]:
        listed = ",".join(f"{width}x{height}" for height, width in request.padded_sizes)
        return {"sizes": listed, "margin": str(request.margin)}

    def _typed_graph(self, request: BuildRequest) -> tuple[Any, str, tuple[str, ...]]:
        from targets._tensorrt.dla import SHUFFLE, refuse_others

        model, kind, notes = super()._typed_graph(request)
        left = refuse_others(model)
        listed = ", ".join(f"{count} {op}" for op, count in sorted(left.items()))
        fits = f"on the DLA by NVIDIA's list of operators, on the GPU {listed}; it never ran"
        cure = "pixel shuffles leave the DLA: --set export.shuffle=conv_transpose keeps them on it"
        return model, kind, (*notes, fits, *([cure] if left[SHUFFLE] else []))

    def open(self, built: Built) -> Session:
        """An engine a size, built when it first comes; images of sizes that were not asked for are
        padded or cut, where any was."""
        self._require()
        session = (
            SimulatedSession(built.file, self.name) if self.simulated else self._on_core(built)
        )
        texts = [text.split("x") for text in built.options["sizes"].split(",") if text]
        taken = tuple((int(height), int(width)) for width, height in texts)
        if not taken:
            return session
        return FixedSizes(session, Sizes(taken, int(built.options["margin"]), built.multiple))

    def _on_core(self, built: Built) -> SizeSessions:
        refuse_outside_files(built.file)
        trt, data = self._flavour.load(), built.file.read_bytes()

        def open_for(size: Size) -> PlanSession:
            cache = engine_folder(self._flavour.name, trt.__version__)
            plan = engine.engine(trt, data, Profile.at(size), cache=cache, dla=self._core)
            return PlanSession(trt, plan, dla=self._core)

        return SizeSessions(open_for)


def _lacks_dla(version: str) -> str:
    """Why a TensorRT offers no DLA: "REASON; CURE"; "" if it does."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    return "" if numbers >= _DLA_SINCE else f"TensorRT {version} offers no DLA; {_DLA_IS_IN}"


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
