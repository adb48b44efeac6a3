"""Which Vulkan device ncnn would run on."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOADERS = {"win32": "vulkan-1.dll", "darwin": "libvulkan.dylib"}
_ON_CPU = 3  # type of a device that is a program on the CPU, such as Mesa's lavapipe


def why_no_device() -> str:
    """ "REASON; CURE", and "" with a device."""
    loader = _LOADERS.get(sys.platform, "libvulkan.so.1")
    try:
        ctypes.CDLL(loader)
    except OSError:
        return f"no Vulkan here ({loader}); install your GPU's driver, on Debian also libvulkan1"
    if device() is None:
        return "Vulkan finds no device; install your GPU's driver"
    return ""


@cache
def device() -> Any:
    """ncnn's record of its first device, None without one."""
    import ncnn

    with _quiet_stderr():
        count = ncnn.get_gpu_count()
    return ncnn.get_gpu_info(ncnn.get_default_gpu_index()) if count > 0 else None


def is_software() -> bool:
    """Whether the device is a program on the CPU: its times are not a GPU's."""
    found = device()
    return found is not None and int(found.type()) == _ON_CPU


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what native code writes: ncnn lists devices and drivers that do not load."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
