"""Sessions on ONNX Runtime's CPU provider, and the precision that it executes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.base import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from targets.base import FloatArray

_INT8 = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm")


class OrtSession(Session):
    """An ONNX Runtime session on the CPU provider."""

    def __init__(self, model: Path | bytes, options: Mapping[str, str]) -> None:
        self._session: Any = _load(model, _settings(options))
        image = self._session.get_inputs()[0]
        self._input, self.takes_uint8 = image.name, image.type == "tensor(uint8)"

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W)."""
        (image,) = self._session.run(None, {self._input: lr_NCHW})
        return image  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drop the session and its threads."""
        self._session = None


def executed_precision(file: Path) -> str:
    """The precision of ONNX Runtime's optimised graph: "int8" if it holds 8-bit kernels."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        settings = _settings({})
        settings.optimized_model_filepath = str(optimised)
        _load(file, settings)
        nodes = onnx.load(optimised, load_external_data=False).graph.node
    return "int8" if any(node.op_type in _INT8 for node in nodes) else "fp32"


def _settings(options: Mapping[str, str]) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    for name, value in options.items():
        settings.add_session_config_entry(name, value)
    return settings


def _load(model: Path | bytes, settings: Any) -> Any:
    import onnxruntime

    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
