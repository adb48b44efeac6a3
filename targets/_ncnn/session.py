"""Sessions on ncnn, and the precision that it computes in.

Shapes: N batch, C channels, H W low-res size, S scale. Values: float32 in [0, 1], RGB.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mipkd.core.errors import StageError
from targets.base import Session

if TYPE_CHECKING:
    from mipkd.core.records import Built
    from targets.base import FloatArray

_FP16 = ("use_fp16_packed", "use_fp16_storage")
# FP16 sums are off by up to 13 levels on ARM (EDSR 32x8 x2 on noise, 43.7 dB; FP32 sums of FP16
# values 0.3 levels, 73 dB). Real-ESRGAN-ncnn leaves them off too.
_OFF = ("use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage")
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
_PRODUCTS = (*_CONVOLUTIONS, "InnerProduct", "Gemm", "MatMul")


class NcnnSession(Session):
    """A net on the CPU, or on the first Vulkan device; images of any size, one after the other."""

    def __init__(self, built: Built, *, vulkan: bool) -> None:
        self._net: Any = load_net(built, vulkan=vulkan)
        (self._input,), (self._output,) = self._net.input_names(), self._net.output_names()

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The upscaled batch, shape (N, C, S*H, S*W).

        Raises:
            StageError: ncnn cannot compute an image of this size.
        """
        if len(lr_NCHW) == 1:
            return self._upscale(lr_NCHW[0])[None]
        return np.stack([self._upscale(lr_CHW) for lr_CHW in lr_NCHW])

    def close(self) -> None:
        """Drop the net and its weights."""
        self._net = None

    def _upscale(self, lr_CHW: FloatArray) -> FloatArray:
        from ncnn import Mat

        extractor = self._net.create_extractor()
        # A copy has its channels where ncnn wants them, at multiples of 16 bytes: without it a
        # Vulkan device reads an image of odd size from wrong places.
        image = Mat(np.ascontiguousarray(lr_CHW)).clone()
        failed = extractor.input(self._input, image)
        if not failed:
            failed, found = extractor.extract(self._output)
        if failed:
            size = "{1}x{0}".format(*lr_CHW.shape[1:])
            raise StageError(f"ncnn: cannot upscale an image of {size}: it says {failed}")
        return np.array(found)


def load_net(built: Built, *, vulkan: bool) -> Any:
    """What `built` names, with 16-bit floats allowed where it was built for them.

    Raises:
        StageError: ncnn refuses a file.
    """
    import ncnn

    net = ncnn.Net()
    for name in _FP16:
        setattr(net.opt, name, built.precision == "fp16")
    for name in _OFF:
        setattr(net.opt, name, False)
    net.opt.use_vulkan_compute = vulkan
    # Spinning threads of one session would take the cores from the next one measured.
    net.opt.openmp_blocktime = 0
    files = (built.file, built.file.with_suffix(".bin"))
    for file, load in zip(files, (net.load_param, net.load_model), strict=True):
        if not file.is_file() or load(str(file)) != 0:
            raise StageError(f"ncnn: {file} is not a model that it can load")
    if (len(net.input_names()), len(net.output_names())) != (1, 1):
        raise StageError(f"ncnn: {built.file} must have one input and one output")
    return net


def count_kernels(built: Built) -> dict[str, int]:
    """The convolutions and matrix products by the precision of the values that they read and write
    on this CPU; sums are FP32.

    A layer says whether its code for this CPU takes 16-bit floats; where it does not, ncnn hands it
    32-bit ones.
    """
    net: Any = load_net(built, vulkan=False)
    layers = [layer for layer in net.layers() if layer.type in _PRODUCTS]
    halves = [net.opt.use_fp16_storage and layer.support_fp16_storage for layer in layers]
    return dict(Counter("fp16" if half else "fp32" for half in halves))
