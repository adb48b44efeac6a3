"""An engine on the GPU, and, where there is none, its graph on another engine for the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mipkd.core.errors import MissingError, StageError, UsageError
from targets._onnxruntime.session import OrtSession
from targets._tensorrt.cuda import Cuda
from targets._tiles import FixedSizes, Sizes
from targets.base import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from targets._tensorrt.api import Api, ICudaEngine, IExecutionContext, Runtime
    from targets._tensorrt.profile import Profile, Size
    from targets.base import FloatArray


class PlanSession(Session):
    """An engine, its buffers and a stream; copies to and from the GPU belong to a run.

    It runs on the GPU, or what of it was built for a DLA core on core `dla`.
    """

    def __init__(self, trt: Api, plan: bytes, *, dla: int | None = None) -> None:
        self._cuda = Cuda()
        self._logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(self._logger)
        if dla is not None:
            runtime.DLA_core = dla
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise StageError(
                "tensorrt: the engine does not load on this GPU and version",
                hint="delete engines in this user's cache of mipkd-pipeline: it is built anew",
            )
        # Memory for the shape in use, not for the largest one that the profile allows.
        self._context = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        names = [engine.get_tensor_name(i) for i in range(2)]
        if engine.get_tensor_mode(names[0]) != trt.TensorIOMode.INPUT:
            names.reverse()
        self._input, self._output = names
        self._least, _, self._most = engine.get_tensor_profile_shape(self._input, 0)
        self._held: tuple[Runtime, ICudaEngine, IExecutionContext] | None = (
            runtime,
            engine,
            self._context,
        )
        self._shape: tuple[int, ...] = ()
        self._buffers: tuple[int, ...] = ()
        self._image: FloatArray = np.zeros(0, np.float32)

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W); valid until the next call."""
        if lr_NCHW.shape != self._shape:
            self._fit(lr_NCHW.shape)
        lr = np.ascontiguousarray(lr_NCHW, dtype=np.float32)
        self._cuda.upload(lr, self._buffers[0])
        if not self._context.execute_async_v3(self._cuda.stream):
            raise StageError(f"tensorrt: running an image of {lr.shape[2:]} LR pixels failed")
        self._cuda.download(self._buffers[1], self._image)
        self._cuda.wait()
        return self._image

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._held = None
        del self._context
        self._cuda.close()

    def _fit(self, shape: tuple[int, ...]) -> None:
        """Buffers for images of another shape."""
        least, most = self._least, self._most
        if any(not a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            raise UsageError(
                f"tensorrt: this engine takes {least[3]}x{least[2]} to {most[3]}x{most[2]} LR "
                f"pixels, not {shape[3]}x{shape[2]}",
                hint="build it with larger ones: --set build.tile=256, or bench.sizes",
            )
        for address in self._buffers:
            self._cuda.free(address)
        self._buffers, self._shape = (), ()
        self._context.set_input_shape(self._input, shape)
        self._image = np.empty(tuple(self._context.get_tensor_shape(self._output)), np.float32)
        scratch = self._context.update_device_memory_size_for_shapes()
        sizes = (4 * int(np.prod(shape)), self._image.nbytes, scratch)
        self._buffers = tuple(self._cuda.allocate(size) for size in sizes)
        self._context.set_tensor_address(self._input, self._buffers[0])
        self._context.set_tensor_address(self._output, self._buffers[1])
        self._context.set_device_memory(self._buffers[2], scratch)
        self._shape = shape


class InProfile(FixedSizes):
    """A session of an engine that takes a range of sizes: smaller images are padded to its largest,
    larger ones cut into tiles of that."""

    def __init__(self, session: Session, profile: Profile, *, margin: int, multiple: int) -> None:
        super().__init__(session, Sizes((profile.most,), margin, multiple))
        self._profile = profile

    def around(self, other: Session) -> InProfile:
        sizes = self.sizes
        return InProfile(other, self._profile, margin=sizes.margin, multiple=sizes.multiple)

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (N, C, S*H, S*W); within the range in one piece."""
        if self._profile.takes(*lr_NCHW.shape[2:]):
            return self._session.run(lr_NCHW)
        return super().run(lr_NCHW)


class SizeSessions(Session):
    """A session for each size, opened when it first comes: a DLA core takes no other."""

    def __init__(self, open_for: Callable[[Size], Session]) -> None:
        self._open_for = open_for
        self._opened: dict[Size, Session] = {}

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled image, shape (N, C, S*H, S*W); valid until the next call."""
        height, width = lr_NCHW.shape[2:]
        if (height, width) not in self._opened:
            self._opened[height, width] = self._open_for((height, width))
        return self._opened[height, width].run(lr_NCHW)

    def close(self) -> None:
        """Close all of them."""
        while self._opened:
            self._opened.popitem()[1].close()


class SimulatedSession(OrtSession):
    """The engine's ONNX on ONNX Runtime's CPU: the same Q/DQ and casts, other kernels."""

    def __init__(self, file: Path, name: str) -> None:
        from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Unknown

        try:
            super().__init__(file, {})
        except Unknown as error:
            raise MissingError(
                f"{name}: ONNX Runtime's CPU cannot simulate this graph: {str(error).strip()}",
                hint="bf16 needs an NVIDIA GPU; fp32 and fp16 can be simulated",
            ) from error
