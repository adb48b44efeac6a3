"""A model on one of OpenVINO's devices: frame by frame, or several frames in flight.

Shapes: N batch, C channels, H W low-res size, S scale. Values: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter, OrderedDict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mipkd.core.errors import UsageError
from targets._openvino import devices
from targets._user_cache import engine_folder
from targets.base import Session, check_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from targets.base import FloatArray

log = logging.getLogger(__name__)

# Ours among the options of a `Built`; OpenVINO's own are in capitals and go to it as they are.
SHAPES = "shapes"  # "fixed": compile anew for each input shape, at its first use
CACHE = "cache"  # "user": keep what is compiled in the user's cache folder
PIXELS = "pixels"  # "uint8": the model takes and gives uint8
OPTIONS = {  # that a model may bring along
    "PERFORMANCE_HINT": "LATENCY|THROUGHPUT",
    "INFERENCE_PRECISION_HINT": "f32|bf16|f16",
    "ENABLE_STARTUP_FALLBACK": "NO|YES",
    "ENABLE_RUNTIME_FALLBACK": "NO|YES",
    SHAPES: "fixed",
    CACHE: "user|engines",  # before, "engines" was a folder beside the model
    PIXELS: "uint8",
}
_SIDE = 64  # LR pixels of the model whose types are read back
_PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_PRECISION = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "int8", "i8": "int8"}
KEPT = 4  # compiled shapes in memory: a device's is small, and each is a model of its own


class Compiler:
    """Compiles a file, or a model in memory, for a device, once or for each shape, and keeps what
    `wrap` makes of it."""

    def __init__(
        self, source: Path | Any, device: str, options: dict[str, str], wrap: Callable[[Any], Any]
    ) -> None:
        check_options(options, OPTIONS, "openvino")
        self._core = devices.core()
        self._source, self._device, self._wrap = source, device, wrap
        self._properties = {k: v for k, v in options.items() if k not in (SHAPES, CACHE, PIXELS)}
        if isinstance(source, Path):
            _refuse_other_kinds(source)
            if CACHE in options and (folder := _cache_folder(source, device)):
                self._properties["CACHE_DIR"] = str(folder)
        self._fixed = options.get(SHAPES) == "fixed"
        self._kept: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        if not self._fixed:
            self._kept[()] = self._compile(str(source) if isinstance(source, Path) else source)

    def at(self, shape: tuple[int, ...]) -> Any:
        """The compiled model for inputs of a shape; those used longest ago are dropped."""
        key = shape if self._fixed else ()
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            if isinstance(self._source, Path):
                model = self._core.read_model(str(self._source))
            else:
                model = self._source.clone()
            model.reshape(list(shape))
            self._kept[key] = self._compile(model)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _compile(self, model: Any) -> Any:
        made = self._core.compile_model(model, self._device, self._properties)
        if "CACHE_DIR" in self._properties:
            found = made.get_property("LOADED_FROM_CACHE")
            log.info("%s: %s", self._device, "compiled before" if found else "compiled anew")
        if self._device == "AUTO":
            log.info("AUTO: runs on %s", ", ".join(made.get_property("EXECUTION_DEVICES")))
        return self._wrap(made)

    def forget(self) -> None:
        """Drop the models of single shapes."""
        if self._fixed:
            self._kept.clear()

    def close(self) -> None:
        """Drop all models and their threads."""
        self._kept.clear()


class LatencySession(Session):
    """One inference request: a frame starts when the one before is done."""

    def __init__(self, source: Path | Any, device: str, options: dict[str, str]) -> None:
        self.takes_uint8 = options.get(PIXELS) == "uint8"
        self._compiler = Compiler(source, device, options, lambda m: m.create_infer_request())

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W); valid until the next call."""
        request = self._compiler.at(lr_NCHW.shape)
        request.infer([lr_NCHW], share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data  # type: ignore[no-any-return]

    def forget_shapes(self) -> None:
        """Drop what was compiled for shapes so far."""
        self._compiler.forget()

    def close(self) -> None:
        """Drop the model and its threads."""
        self._compiler.close()


class ThroughputSession(Session):
    """As many requests in flight as the device wants, of one `run` or of several threads' calls.

    A batch is run frame by frame among those that are free. One frame alone takes longer than in a
    `LatencySession`, since it gets a part of the device only.
    """

    def __init__(self, file: Path, device: str, options: dict[str, str], scale: int) -> None:
        self._scale = scale
        self.takes_uint8 = options.get(PIXELS) == "uint8"
        self._lock = threading.Lock()  # a shape is compiled once
        self._compiler = Compiler(file, device, options, _Requests)

    def frames_in_flight(self, shape: tuple[int, ...]) -> int:
        """How many frames of shape (1, C, H, W) the device wants at a time."""
        return self._at(shape).count

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W)."""
        count, channels, height, width = lr_NCHW.shape
        shape = (count, channels, height * self._scale, width * self._scale)
        sr_NCHW = np.empty(shape, np.uint8 if self.takes_uint8 else np.float32)
        with self._at((1, channels, height, width)).borrow(count) as requests:
            for i in range(count + len(requests)):
                # No callbacks: OpenVINO's threads would want Python's lock while somebody holds it
                # and waits for them.
                request, done = requests[i % len(requests)], i - len(requests)
                if 0 <= done < count:
                    request.wait()
                    sr_NCHW[done] = request.get_output_tensor(0).data[0]
                if i < count:
                    request.start_async([lr_NCHW[i : i + 1]], share_inputs=True)
        return sr_NCHW

    def close(self) -> None:
        """Drop the model and its threads."""
        self._compiler.close()

    def _at(self, shape: tuple[int, ...]) -> _Requests:
        with self._lock:
            found: _Requests = self._compiler.at(shape)
        return found


class _Requests:
    """The inference requests of a compiled model, lent to one thread at a time."""

    def __init__(self, model: Any) -> None:
        self.count: int = model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._free = SimpleQueue[Any]()
        for _ in range(self.count):
            self._free.put(model.create_infer_request())

    @contextlib.contextmanager
    def borrow(self, most: int) -> Iterator[list[Any]]:
        """One request, waited for, and those that are free beside it, `most` in all."""
        lent = [self._free.get()]
        try:
            with contextlib.suppress(Empty):
                while len(lent) < most:
                    lent.append(self._free.get_nowait())
            yield lent
        finally:
            for request in lent:
                self._free.put(request)


def count_kernels(
    file: Path, device: str, options: dict[str, str], multiple: int
) -> dict[str, int]:
    """The compiled model's convolutions and matrix products by the precision that they run in.

    Empty where the device does not tell.
    """
    side = -(-_SIDE // multiple) * multiple
    found: Counter[str] = Counter()

    def read(model: Any) -> None:
        for op in model.get_runtime_model().get_ordered_ops():
            facts = op.get_rt_info()
            if "layerType" in facts and facts["layerType"].astype(str) in _PRODUCTS:
                kind = facts["runtimePrecision"].astype(str)
                found[_PRECISION.get(kind, kind)] += 1

    given = {name: value for name, value in options.items() if name != CACHE}
    with contextlib.suppress(RuntimeError):  # a device need not tell
        Compiler(file, device, given | {SHAPES: "fixed"}, read).at((1, 3, side, side))
    return dict(found)


def _refuse_other_kinds(file: Path) -> None:
    """OpenVINO reads any framework's file, and with some of them files that they name."""
    if file.suffix != ".xml":
        raise UsageError(
            f"openvino: {file}: no OpenVINO model: its name does not end in .xml",
            hint="give the .xml, with its .bin beside it",
        )


def _cache_folder(file: Path, device: str) -> Path | None:
    """For what is compiled of this model, for this device by this version and driver."""
    facts = (devices.package().__version__, device, *devices.facts(device).values())
    weights = file.with_suffix(".bin")
    files = [file, weights] if weights.is_file() else [file]
    return engine_folder("openvino", *facts, files=files)
