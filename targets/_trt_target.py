"""A target of TensorRT's kind: types written into the ONNX, an engine beside it.

`open` needs numpy and the runtime alone; `build` needs the host's onnx, onnxruntime and nncf too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.records import Built, Graph, PatchSet, Rounding, TargetInfo
from targets import _trt
from targets._cuda import gpu
from targets._trt_session import PlanSession, SimulatedSession
from targets.base import version_of

if TYPE_CHECKING:
    from targets.base import Session

_OFFERED = ("fp32", "fp16", "int8")
_KNOWN = ("fp32", "fp16", "bf16", "int8")  # bf16 when asked for, or where fp16 would overflow
MAKERS = ("onnx", "onnxruntime", "nncf", "nvidia-modelopt", "numpy")
NO_GPU = "no NVIDIA GPU and driver found; sudo ubuntu-drivers install, until nvidia-smi lists it"
_PATCHES = 8  # of the calibration's that probe FP16's range, beside the extreme images
_PROBED = 48  # LR pixels a side of these extreme images


class TensorRt:
    """One flavour of TensorRT on the first NVIDIA GPU."""

    makes_pixels = True

    def __init__(self, flavour: _trt.Flavour, name: str = "") -> None:
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

    def versions(self) -> dict[str, str]:
        """The runtime, what makes its graph, and the GPU's facts that an engine depends on."""
        return {self._flavour.name: self._flavour.load().__version__, **facts(*MAKERS)}

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: TargetInfo | None = None,
        rounding: Rounding | None = None,
    ) -> Built:
        """`out`/model.onnx in its final types, and the engine under `out`/engines.

        INT8 is on the grids of `rounding` where it was learned with the weights of `graph`.
        """
        if precision not in _KNOWN:
            raise UnsupportedError(
                f"{self.name}: no precision {precision!r}", hint="known: " + ", ".join(_KNOWN)
            )
        if precision == "int8" and calibration is None:
            raise MissingError(
                f"{self.name} int8 needs calibration patches", hint="give photos: --data"
            )
        self._require()
        from calibration.qdq import check

        model, kind, notes = _typed(graph, precision, calibration, rounding)
        check(model)
        data = model.SerializeToString()
        out.mkdir(parents=True, exist_ok=True)
        file, profile = out / "model.onnx", _trt.Profile.of(graph.multiple)
        file.write_bytes(data)
        notes = (*notes, *self._prepare(file, data, profile))
        return Built(
            target=self.name,
            precision=kind,
            role=graph.role,
            file=file,
            size_bytes=len(data),
            scale=graph.scale,
            multiple=graph.multiple,
            options={"profile": str(profile)},
            notes=notes,
        )

    def rounding(self, graph: Graph, patches: PatchSet) -> Rounding:
        """What its INT8 of `graph` rounds; what is float is taken for exact."""
        import onnx

        from calibration.qdq import rounding

        return rounding(onnx.load(graph.file), patches)

    def open(self, built: Built) -> Session:
        """The engine for this GPU; one that was built elsewhere is built anew."""
        self._require()
        if self.simulated:
            return SimulatedSession(built.file, self.name)
        trt, data = self._flavour.load(), built.file.read_bytes()
        profile = _trt.Profile.of(built.multiple)
        return PlanSession(trt, _trt.engine(trt, data, profile, caches=_caches(built.file)))

    def _prepare(self, file: Path, data: bytes, profile: _trt.Profile) -> tuple[str, ...]:
        """The engine beside the graph `data` in `file`, and notes."""
        _trt.engine(self._flavour.load(), data, profile, caches=_caches(file))
        simulated = f"built without a GPU, for SM{_trt.ASSUMED_SM}: a device builds its own engine"
        return (simulated,) if self.simulated else ()

    def _require(self) -> None:
        if reason := self.why_not():
            raise MissingError(f"{self.name}: {reason}")


def _typed(
    graph: Graph, precision: str, calibration: PatchSet | None, rounding: Rounding | None
) -> tuple[Any, str, tuple[str, ...]]:
    """The model in the types to compute in, the precision that became, and notes."""
    import onnx

    from calibration import half, qdq

    model = onnx.load(graph.file)
    if precision == "fp32":
        return model, precision, ()
    kind, notes = (half.BF16, ()) if precision == half.BF16 else sixteen_bits(graph, calibration)
    if precision != "int8":
        return half.halved(model, kind), kind, notes
    assert calibration is not None
    quantized, kept = qdq.quantized(model, calibration, rounding)
    notes = (*kept, f"what is float is {kind.upper()}", *notes)
    return half.halved(quantized, kind), precision, notes


def sixteen_bits(graph: Graph, calibration: PatchSet | None) -> tuple[str, tuple[str, ...]]:
    """FP16, or BF16 with a note where values of this graph would overflow FP16."""
    from calibration import half
    from calibration.patches import as_batches

    side = -(-_PROBED // graph.multiple) * graph.multiple
    patches = as_batches(calibration) if calibration else []
    images = [*half.extremes(side), *patches[:: -(-len(patches) // _PATCHES) or 1]]
    peak = half.peak(graph.file, images)
    if peak.fits_fp16:
        return half.FP16, ()
    return half.BF16, (f"BF16, not FP16: {peak.tensor} reaches {peak.value:.3g}",)


def _caches(file: Path) -> tuple[Path, ...]:
    """Where engines are kept: beside the graph, and for this user where building takes minutes."""
    home = (Path.home() / ".cache" / "mipkd-pipeline" / "engines",) if gpu() else ()
    return (file.parent / "engines", *home)


def facts(*packages: str) -> dict[str, str]:
    """Versions of what is installed, and the GPU's facts that an engine depends on."""
    device = gpu()
    of_gpu = {"cuda": device.cuda, "sm": device.sm, "jetpack": device.jetpack} if device else {}
    found = {**{name: version_of(name) for name in packages}, **of_gpu}
    return {name: known for name, known in found.items() if known}
