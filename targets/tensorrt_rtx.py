"""TensorRT-RTX for NVIDIA's desktop GPUs: builds without a GPU, so that CI can."""

from targets._tensorrt.engine import Flavour
from targets._tensorrt.target import TensorRt

TARGET = TensorRt(
    Flavour(
        name="tensorrt_rtx",
        modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        install='pip install "mipkd-pipeline[tensorrt-rtx]"',
        without_gpu=True,
        install_int8='pip install "mipkd-pipeline[tensorrt-rtx]"',
    )
)
