"""TensorRT-RTX for NVIDIA's desktop GPUs: builds without a GPU, so that CI can."""

from targets._trt import Flavour
from targets._trt_target import TensorRt

TARGET = TensorRt(
    Flavour(
        name="tensorrt_rtx",
        modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        install='pip install "mipkd-pipeline[tensorrt-rtx]"',
        without_gpu=True,
    )
)
