"""The NVIDIA driver: facts of the GPU, memory and one stream. Needs libcuda alone."""

from __future__ import annotations

import ctypes
import functools
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipkd.core.errors import StageError

if TYPE_CHECKING:
    from targets.base import FloatArray

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1
_RELEASE = "etc/nv_tegra_release"
_L4T = re.compile(r"R(\d+).*REVISION: ([\d.]+)")


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU, as far as an engine depends on it."""

    sm: str  # "86"
    cuda: str  # that the driver supports
    jetpack: str  # release of Jetson Linux, "" elsewhere
    name: str = ""  # "Orin", "NVIDIA GeForce RTX 4060"


@functools.cache
def gpu() -> Gpu | None:
    """The first GPU, None where there is no driver or no device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    if (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        or driver.cuDriverGetVersion(ctypes.byref(version))
        or driver.cuDeviceGetName(name, len(name), device)
    ):
        return None
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(f"{major.value}{minor.value}", cuda, _jetpack(), name.value.decode(errors="replace"))


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this machine is a Jetson: Jetson Linux says so, or in a container its device tree."""
    if (root / _RELEASE).is_file():
        return True
    with suppress(OSError):
        return b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes()
    return False


def _jetpack() -> str:
    with suppress(OSError):
        if found := _L4T.search((Path("/") / _RELEASE).read_text()):
            return "L4T " + ".".join(found.groups())
    return ""


class Cuda:
    """The first GPU's primary context, which the CUDA runtime inside TensorRT shares."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("nvcuda.dll" if hasattr(ctypes, "WinDLL") else "libcuda.so.1")
        self._device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        self._stream = stream
        self._held: list[int] = []

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return self._stream.value or 0

    def allocate(self, count: int) -> int:
        """The address of `count` new bytes on the device."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(count, 256)))
        self._held.append(address.value)
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._held.remove(address)
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, array: FloatArray, to: int) -> None:
        """Queue a copy from the host; `array` is contiguous and lives until `wait`."""
        size = ctypes.c_size_t(array.nbytes)
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(to), source, size, self._stream)

    def download(self, address: int, into: FloatArray) -> None:
        """Queue a copy to the host."""
        size, target = ctypes.c_size_t(into.nbytes), ctypes.c_void_p(into.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self._stream)

    def wait(self) -> None:
        """Block until all that was queued is done."""
        self._call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give everything back."""
        for address in list(self._held):
            self.free(address)
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, function: str, *arguments: Any) -> None:
        if code := getattr(self._driver, function)(*arguments):
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            said = (text.value or b"unknown").decode()
            raise StageError(
                f"tensorrt: {function} failed: {said} (CUDA error {code})",
                hint="out of memory: use smaller images, or close what else runs on the GPU",
            )
