"""The target that all flavours of TensorRT share: a typed ONNX graph and an engine beside it.

`open` needs numpy and the runtime alone; `build` needs the host's onnx, onnxruntime and nncf too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mipkd.core.errors import MissingError
from targets._onnx.outside_files import refuse_outside_files
from targets._tensorrt import engine
from targets._tensorrt.cuda import gpu
from targets._tensorrt.profile import Profile
from targets._tensorrt.session import InProfile, PlanSession, SimulatedSession
from targets._tensorrt.types import RTX, Parser, type_graph
from targets._user_cache import engine_folder
from targets.base import BuildRequest, Feature, Target, version_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mipkd.core.records import Built, QuantScheme
    from targets.base import Session

_OFFERED = ("fp32", "fp16", "int8")
_KNOWN = ("fp32", "fp16", "bf16", "int8")  # bf16 when asked for, or where fp16 would overflow
MAKERS = ("onnx", "onnxruntime", "nncf", "nvidia-modelopt", "numpy")
NO_GPU = "no NVIDIA GPU and driver found; sudo ubuntu-drivers install, until nvidia-smi lists it"


class TensorRt(Target):
    """One flavour of TensorRT on the first NVIDIA GPU."""

    features = frozenset({Feature.FIXED_INT8, Feature.SIZES})
    # Older models have one number for both sides, and no margin.
    options: ClassVar[Mapping[str, str]] = {
        "profile": r"\d+(x\d+)?(-\d+(x\d+)?){2}",
        "margin": r"\d+",
    }

    def __init__(self, flavour: engine.Flavour, name: str = "") -> None:
        self.name = name or flavour.name
        self._flavour = flavour

    @property
    def simulated(self) -> bool:
        """Engines are built here, but without a GPU ONNX Runtime makes the pixels."""
        return self._flavour.without_gpu and gpu() is None

    def precisions(self) -> tuple[str, ...]:
        """FP32, 16 bits and INT8."""
        return _OFFERED

    def why_not(self) -> str:
        """The package and, except for a flavour that builds without, the GPU."""
        missing = []
        if not self._flavour.found():
            missing.append(f"{self._flavour.name} is not installed; {self._flavour.install}")
        if gpu() is None and not self._flavour.without_gpu:
            missing.append(NO_GPU)
        if self.simulated and not version_of("onnxruntime"):
            missing.append("without a GPU onnxruntime is needed; pip install onnxruntime")
        return "; and ".join(missing)

    def why_not_build(self, precision: str) -> str:
        """What builds the engine here, and for INT8 what quantises."""
        if reason := self.why_not():
            return reason
        if precision != "int8":
            return ""
        from targets._tensorrt.symmetric_qdq import find_maker

        cure = self._flavour.install_int8
        return "" if find_maker() else f"needs nncf, which is not installed; {cure}"

    def versions(self) -> dict[str, str]:
        """The runtime, what makes its graph, and the GPU's facts that an engine depends on."""
        return {self._flavour.name: self._flavour.load().__version__, **facts(*MAKERS)}

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.onnx in its final types; the engine is kept in the user's cache.

        INT8 is on the request's grids where they were learned with the weights of its graph.
        """
        self.check(request, known=_KNOWN)
        self._require()
        from targets._tensorrt.symmetric_qdq import refuse_unreadable

        model, kind, notes = self._typed_graph(request)
        refuse_unreadable(model)
        data = model.SerializeToString()
        file, profile = request.out / "model.onnx", profile_for(request)
        request.out.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        notes = (*notes, *self._prepare(file, data, profile))
        # Networks are strongly typed: the types of the graph are those that it is computed in.
        options = self._options(request)
        return self.describe(request, file, executes=kind, options=options, notes=notes)

    def quant_scheme(self, request: BuildRequest) -> QuantScheme:
        """All that INT8 of a graph rounds; 16-bit floats are taken for exact."""
        import onnx

        from targets._tensorrt.symmetric_qdq import read_rounding

        assert request.patches is not None, "INT8 has them"
        return read_rounding(onnx.load(request.graph.file), request.patches)

    def open(self, built: Built) -> Session:
        """The engine for this GPU; one that was built elsewhere is built anew."""
        self._require()
        if self.simulated:
            return SimulatedSession(built.file, self.name)
        refuse_outside_files(built.file)
        profile = Profile.parse(built.options["profile"])
        plan = self._engine(built.file.read_bytes(), profile)
        return for_any_size(PlanSession(self._flavour.load(), plan), built, profile)

    def _prepare(self, file: Path, data: bytes, profile: Profile) -> tuple[str, ...]:
        """Build the engine of the graph `data` in `file`; notes."""
        self._engine(data, profile)
        simulated = (
            f"built without a GPU, for SM{engine.ASSUMED_SM}: a device builds its own engine"
        )
        return (simulated,) if self.simulated else ()

    def _engine(self, data: bytes, profile: Profile) -> bytes:
        """This user keeps it where a GPU is: building takes minutes there."""
        trt = self._flavour.load()
        cache = engine_folder(self._flavour.name, trt.__version__) if gpu() else None
        return engine.engine(trt, data, profile, cache=cache)

    def _require(self) -> None:
        if reason := self.why_not():
            raise MissingError(f"{self.name}: {reason}")

    def _options(self, request: BuildRequest) -> dict[str, str]:
        """What `open` must know of the sizes that were asked for."""
        return {"profile": str(profile_for(request)), "margin": str(request.margin)}

    def _typed_graph(self, request: BuildRequest) -> tuple[Any, str, tuple[str, ...]]:
        """The model in the types that it is computed in, their precision, and notes."""
        return type_graph(request, self._parser(request))

    def _parser(self, request: BuildRequest) -> Parser:
        """Of the machine that will build the engine."""
        if self._flavour.name != "tensorrt":
            return RTX
        here = "" if request.on else self._flavour.load().__version__
        return Parser.of(request.on.versions.get("tensorrt", "") if request.on else here)


def profile_for(request: BuildRequest) -> Profile:
    """The sizes that an engine for the request takes."""
    return Profile.of(request.sizes, request.graph.multiple)


def for_any_size(session: Session, built: Built, profile: Profile) -> Session:
    """A session that pads images below an engine's range and cuts those above it into tiles."""
    margin = int(built.options.get("margin", BuildRequest.margin))
    return InProfile(session, profile, margin=margin, multiple=built.multiple)


def facts(*packages: str) -> dict[str, str]:
    """Versions of what is installed, and the GPU's facts that an engine depends on."""
    device = gpu()
    found = {name: version_of(name) for name in packages}
    if device:
        found |= {
            "cuda": device.cuda,
            "sm": device.sm,
            "jetpack": device.jetpack,
            "gpu": device.name,
        }
    return {name: known for name, known in found.items() if known}
