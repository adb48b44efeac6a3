"""Engines made by torch-tensorrt from the torch net, on a machine with torch and a GPU.

Written against the sources of torch-tensorrt 2.11 to 2.13; we have never run it on a GPU. These
versions compute in the types of the program (2.13 knows nothing else), so the program states them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from mipkd.core.errors import MissingError, StageError
from targets._tensorrt.cuda import gpu
from targets._tensorrt.profile import Profile
from targets._tensorrt.session import PlanSession
from targets._tensorrt.target import TensorRt, facts, for_any_size, profile_for
from targets._tensorrt.types import fp16_or_bf16
from targets._torch.exported_program import export_program, load_net
from targets.base import Feature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mipkd.core.records import Built
    from targets.base import BuildRequest, Session

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

    features = frozenset({Feature.FROM_NET, Feature.SIZES})
    options: ClassVar[Mapping[str, str]] = {
        **TensorRt.options,
        "made_for": r"sm\d*-trt[\w.+-]+",
    }

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

    def build(self, request: BuildRequest) -> Built:
        """`out`/model.plan, for this machine's GPU and TensorRT only.

        Raises:
            StageError: torch-tensorrt does not convert the net.
        """
        self.check(request)
        self._require()
        fp32 = request.precision == "fp32"
        kind, notes = ("fp32", ()) if fp32 else fp16_or_bf16(request)
        net = load_net(request, target=self.name)
        profile = profile_for(request)
        file = request.out / "model.plan"
        request.out.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_engine(typed_program(net.cuda(), kind, profile), profile))
        return self.describe(
            request,
            file,
            executes=kind,
            options={
                "profile": str(profile),
                "margin": str(request.margin),
                "made_for": self._made_for(),
            },
            notes=(*notes, f"all of the net is {kind.upper()}, the image's ends too"),
        )

    def open(self, built: Built) -> Session:
        """The engine, on the GPU and TensorRT that it was made for.

        Raises:
            StageError: this machine has others.
        """
        self._require()
        if (wanted := built.options.get("made_for", "")) != (here := self._made_for()):
            raise StageError(
                f"{self.name}: the engine is for {wanted}, this machine is {here}",
                hint="build it here, or use the target tensorrt, which ships the graph",
            )
        session = PlanSession(self._flavour.load(), built.file.read_bytes())
        return for_any_size(session, built, Profile.parse(built.options["profile"]))

    def _made_for(self) -> str:
        device = gpu()
        return f"sm{device.sm if device else ''}-trt{self._flavour.load().__version__}"


def typed_program(net: Any, kind: str, profile: Profile) -> Any:
    """The exported program of `net` in the types of `kind`; images stay float32 at both ends."""
    import torch

    dtype = getattr(torch, _TYPES[kind])
    net = net.to(dtype)

    def upscale(lr: Any) -> Any:
        return net.forward_with_taps(lr.to(dtype))[0].float()

    least, most = min(profile.least), max(profile.most)
    return export_program(net, upscale, least=least, usual=min(profile.usual), most=most)


def shapes(profile: Profile) -> dict[str, tuple[int, int, int, int]]:
    """The profile in the words of `torch_tensorrt.Input`."""
    named = zip(("min", "opt", "max"), profile.sizes, strict=True)
    return {f"{name}_shape": (1, 3, *size) for name, size in named}


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
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise StageError(
            f"tensorrt:torch: the net cannot be converted: {reason}",
            hint="use the target tensorrt, which starts from ONNX",
        ) from error
