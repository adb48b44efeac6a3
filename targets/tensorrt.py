"""TensorRT on this machine's NVIDIA GPU."""

from targets._trt import Flavour
from targets._trt_target import TensorRt

TARGET = TensorRt(
    Flavour(
        name="tensorrt",
        modules=("tensorrt",),
        install="pip install tensorrt (on a Jetson, JetPack brings it: python3-libnvinfer)",
        without_gpu=False,
    )
)
