"""Engines that torch-tensorrt makes of the torch net, on a machine with torch and a GPU.

Written against the sources of torch-tensorrt 2.11 to 2.13; we have never run it on a GPU. These
versions compute in the types of the program (2.13 knows nothing else), so the program states them.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import MissingError, StageError, UnsupportedError
from mipkd.core.records import Built, Graph, PatchSet, Rounding, Told
from targets import _torch_net
from targets._cuda import gpu
from targets._trt import Profile
from targets._trt_session import PlanSession
from targets._trt_target import TensorRt, facts, sixteen_bits

if TYPE_CHECKING:
    from targets.base import Session

INSTALL = 'pip install "mipkd-pipeline[tensorrt]"'
_OFFERED = ("fp32", "fp16")
_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# One engine of the whole net for any size; FP32 that is FP32, not TF32.
SETTINGS = {
    "disable_tf32": True,
    "assume_dynamic_shape_support": True,
    "require_full_compilation": True,
    "immutable_weights": True,
}


class TorchTensorRt(TensorRt):
    """TensorRT engines made from the torch net instead of from ONNX."""

    def precisions(self) -> tuple[str, ...]:
        """FP32 and 16 bits."""
        return _OFFERED

    def why_not(self) -> str:
        """What TensorRT needs, and torch-tensorrt."""
        missing = [super().why_not()]
        if not find_spec("torch_tensorrt"):
            missing.append(f"torch_tensorrt is not installed; {INSTALL}")
        return "; and ".join(reason for reason in missing if reason)

    def versions(self) -> dict[str, str]:
        """The runtime, both that make an engine, and the GPU's facts that it depends on."""
        trt = self._flavour.load()
        return {"tensorrt": trt.__version__, **facts("torch", "torch-tensorrt", "numpy")}

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: Told | None = None,
        rounding: Rounding | None = None,
    ) -> Built:
        """`out`/model.plan, for this machine's GPU and TensorRT only; it has no INT8 to round to.

        Raises:
            StageError: torch-tensorrt does not convert the net.
        """
        if precision not in _OFFERED:
            raise UnsupportedError(
                f"{self.name}: no precision {precision!r}", hint="known: " + ", ".join(_OFFERED)
            )
        self._require()
        kind, notes = (precision, ()) if precision == "fp32" else sixteen_bits(graph, calibration)
        net, profile = _torch_net.net_of(graph, target=self.name), Profile.of(graph.multiple)
        plan = _engine(program(net.cuda(), kind, profile), profile)
        out.mkdir(parents=True, exist_ok=True)
        file = out / "model.plan"
        file.write_bytes(plan)
        return Built(
            target=self.name,
            precision=kind,
            role=graph.role,
            file=file,
            size_bytes=len(plan),
            scale=graph.scale,
            multiple=graph.multiple,
            options={"profile": str(profile), "made_for": self._made_for()},
            notes=(*notes, f"all of the net is {kind.upper()}, the image's ends too"),
        )

    def open(self, built: Built) -> Session:
        """The engine, on the GPU and TensorRT that it was made for.

        Raises:
            StageError: this machine has others.
        """
        self._require()
        if (wanted := built.options["made_for"]) != (here := self._made_for()):
            raise StageError(
                f"{self.name}: the engine is for {wanted}, this machine is {here}",
                hint="build it here, or use the target tensorrt, which ships the graph",
            )
        return PlanSession(self._flavour.load(), built.file.read_bytes())

    def _made_for(self) -> str:
        device = gpu()
        return f"sm{device.sm if device else ''}-trt{self._flavour.load().__version__}"


def program(net: Any, kind: str, profile: Profile) -> Any:
    """The exported program of `net` in the types of `kind`; images stay float32 at both ends."""
    import torch

    dtype = getattr(torch, _TYPES[kind])
    net = net.to(dtype)

    def upscale(lr: Any) -> Any:
        return net.forward_with_taps(lr.to(dtype))[0].float()

    return _torch_net.program(
        net, upscale, least=profile.least, side=profile.usual, most=profile.most
    )


def shapes(profile: Profile) -> dict[str, tuple[int, int, int, int]]:
    """The profile in the words of `torch_tensorrt.Input`."""
    sides = {"min": profile.least, "opt": profile.usual, "max": profile.most}
    return {f"{name}_shape": (1, 3, side, side) for name, side in sides.items()}


def _engine(exported: Any, profile: Profile) -> bytes:
    import torch

    try:
        import torch_tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingError(f"torch_tensorrt cannot be imported: {error}", hint=INSTALL) from error
    image = torch_tensorrt.Input(**shapes(profile), dtype=torch.float32)
    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    try:
        return bytes(convert(exported, arg_inputs=[image], **SETTINGS))
    except Exception as error:  # torch's, TensorRT's and its own share no base class
        told = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise StageError(
            f"tensorrt:torch: the net cannot be converted: {told}",
            hint="use the target tensorrt, which starts from ONNX",
        ) from error
