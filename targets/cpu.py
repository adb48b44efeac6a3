"""ONNX Runtime on this machine's CPU: FP32, and INT8 with unsigned activations.

`open` needs numpy and onnxruntime alone; `build` needs the host's onnx too.
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import shutil
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import MissingError, UnsupportedError
from mipkd.core.records import Built, Graph, PatchSet, Told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from targets.base import FloatArray

_X86 = ("x86_64", "amd64")


class OrtSession:
    """An ONNX Runtime session on the CPU provider."""

    def __init__(self, file: Path, options: dict[str, str]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in options.items():
            settings.add_session_config_entry(name, value)
        self._session: Any = onnxruntime.InferenceSession(
            str(file), settings, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W)."""
        (image,) = self._session.run(None, {self._input: lr_NCHW})
        return image  # type: ignore[no-any-return]

    def close(self) -> None:
        """Drop the session and its threads."""
        self._session = None


class Cpu:
    """ONNX Runtime's CPU provider."""

    name = "cpu"
    makes_pixels = True
    simulated = False

    def precisions(self) -> tuple[str, ...]:
        """FP32 and INT8; the CPU provider has no fast 16-bit convolutions."""
        return ("fp32", "int8")

    def why_not(self) -> str:
        """Missing only where onnxruntime is."""
        try:
            version("onnxruntime")
        except PackageNotFoundError:
            return "onnxruntime is not installed; pip install onnxruntime"
        return ""

    def versions(self) -> dict[str, str]:
        """onnxruntime and numpy."""
        return {name: version(name) for name in ("onnxruntime", "numpy")}

    def build(
        self,
        graph: Graph,
        precision: str,
        calibration: PatchSet | None,
        out: Path,
        *,
        on: Told | None = None,
    ) -> Built:
        """`out`/model.onnx, quantised for "int8"."""
        out.mkdir(parents=True, exist_ok=True)
        file = out / "model.onnx"
        notes: tuple[str, ...] = ()
        if precision == "fp32":
            shutil.copyfile(graph.file, file)
        elif precision == "int8":
            notes = _quantize(graph, _given(calibration), file, saturates=_saturates(on))
        else:
            raise UnsupportedError(f"cpu: no precision {precision!r}", hint="known: fp32, int8")
        return Built(
            target=self.name,
            precision=precision,
            role=graph.role,
            file=file,
            size_bytes=file.stat().st_size,
            scale=graph.scale,
            multiple=graph.multiple,
            # A spinning pool of one session would take the cores from the next one measured.
            options={"session.intra_op.allow_spinning": "0"},
            notes=notes,
        )

    def open(self, built: Built) -> OrtSession:
        """A session on all cores."""
        return OrtSession(built.file, built.options)


def _given(calibration: PatchSet | None) -> PatchSet:
    if calibration is None:
        raise MissingError("cpu int8 needs calibration patches", hint="give photos: --data")
    return calibration


def _quantize(graph: Graph, patches: PatchSet, file: Path, *, saturates: bool) -> tuple[str, ...]:
    """Static quantisation: U8 activations by min/max, S8 weights per output channel.

    The first convolution stays float: measured on EDSR-baseline x4 and Set14 that costs 5 % of
    the speed and saves a tenth of the loss; the last one too would cost 20 %.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from calibration.patches import as_batches
    from calibration.scopes import ATTENTION_NOTE, onnx_scopes

    name = onnx.load(graph.file, load_external_data=False).graph.input[0].name

    class Patches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter({name: batch} for batch in as_batches(patches))

        def get_next(self) -> dict[str, FloatArray] | None:
            return next(self.left, None)

    found = onnx_scopes(graph.file)
    notes = [f"{len(found.head)} convolution stays FP32: the first"]
    if found.attention:
        notes.append(ATTENTION_NOTE)
    if saturates:
        notes.append("weights of 7 bits: no VNNI is known of the CPU, it would saturate with 8")
    prepared = file.with_name("prepared.onnx")
    with _quiet():
        quant_pre_process(str(graph.file), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(file),
            Patches(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=saturates,
            op_types_to_quantize=["Conv", "MatMul"],
            nodes_to_exclude=list(found.head),
            calibrate_method=CalibrationMethod.MinMax,
        )
    prepared.unlink()
    return tuple(notes)


def _saturates(on: Told | None) -> bool:
    """Whether sums of U8 x S8 products clip at 16 bits, as on an x86 CPU without VNNI."""
    machine = on.host.system if on else platform.machine()
    features = on.host.features if on else _flags()
    is_x86 = machine.lower().endswith(_X86) or "avx2" in features
    return is_x86 and not any("vnni" in feature for feature in features)


def _flags() -> list[str]:
    """This machine's own, under Linux's names."""
    lines = _lines(Path("/proc/cpuinfo"))
    return next((line for line in lines if line.startswith("flags")), "").split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice out of the user's terminal."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(before)


TARGET = Cpu()
