"""Sessions on ONNX Runtime's CPU provider, and the kernels that it runs."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from targets._onnx.outside_files import refuse_outside_files
from targets.base import Session, check_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from targets.base import FloatArray

_INT8 = re.compile(
    "^(QLinearConv|QLinearMatMul|ConvInteger|MatMulInteger.*|QGemm|Dynamic.*MatMul)$"
)
_FLOAT = re.compile("^(Fused)?(Conv|ConvTranspose|MatMul|Gemm)$")
_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
OPTIONS = {"session.intra_op.allow_spinning": "[01]"}  # that a model may bring along
_SIDE = 32  # LR pixels of the image that kernels are counted on


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


def count_kernels(file: Path, options: Mapping[str, str], multiple: int) -> dict[str, int]:
    """The convolutions and matrix products that one image runs, by precision, from a profile."""
    side = -(-_SIDE // multiple) * multiple
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(options)
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "kernels")
        session = _load(file, settings)
        image = session.get_inputs()[0]
        kind = np.uint8 if image.type == "tensor(uint8)" else np.float32
        session.run(None, {image.name: np.zeros((1, 3, side, side), kind)})
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    return dict(Counter(filter(None, map(_precision_of, ran))))


def _precision_of(kernel: Mapping[str, Any]) -> str:
    """That of a convolution or matrix product; "" of another kernel."""
    if _INT8.match(kernel["op_name"]):
        return "int8"
    if not _FLOAT.match(kernel["op_name"]):
        return ""
    (kind,) = kernel["input_type_shape"][0]
    return _TYPES.get(kind, str(kind))


def _settings(options: Mapping[str, str]) -> Any:
    import onnxruntime

    check_options(options, OPTIONS, "onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    for name, value in options.items():
        settings.add_session_config_entry(name, value)
    return settings


def _load(model: Path | bytes, settings: Any) -> Any:
    import onnxruntime

    if isinstance(model, Path):
        refuse_outside_files(model)
    source = model if isinstance(model, bytes) else _source(model)
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def _source(file: Path) -> str | bytes:
    """The file's name, or where that is no UTF-8, which ONNX Runtime wants, what it holds."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return file.read_bytes()
    return str(file)
