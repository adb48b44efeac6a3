"""TensorRT on this machine's NVIDIA GPU, from ONNX or (`tensorrt:torch`) by torch-tensorrt."""

from targets._tensorrt.engine import Flavour
from targets._tensorrt.from_torch import TorchTensorRt
from targets._tensorrt.target import TensorRt


class FromOnnx(TensorRt):
    """TensorRT from ONNX; its variant starts from the torch net."""

    def variants(self) -> tuple[str, ...]:
        """The one other builder."""
        return ("torch",)

    def variant(self, name: str) -> TorchTensorRt:
        """Engines that torch-tensorrt makes."""
        return TorchTensorRt(self._flavour, f"{self.name}:{name}")


TARGET = FromOnnx(
    Flavour(
        name="tensorrt",
        modules=("tensorrt",),
        install="pip install tensorrt",
        without_gpu=False,
    )
)
