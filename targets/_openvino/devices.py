"""OpenVINO's package and the devices that it finds on this machine."""

from __future__ import annotations

import functools
from typing import Any

INSTALL = 'pip install "mipkd-pipeline[openvino]"'
# What makes a device appear: its driver on Linux, and in a container the way to it.
_NEEDED = {
    "GPU": ("Intel GPU", "sudo apt install intel-opencl-icd (in docker: --device /dev/dri)"),
    "GPU.1": ("second Intel GPU", "with the card in: sudo apt install intel-opencl-icd"),
    "NPU": ("Intel NPU", "on a Core Ultra: its driver, https://github.com/intel/linux-npu-driver"),
}
_FACTS = {"FULL_DEVICE_NAME": "device", "NPU_DRIVER_VERSION": "npu_driver"}


def package() -> Any:
    """The module `openvino`."""
    import openvino

    return openvino


@functools.cache
def core() -> Any:
    """The one Core of this process: a second would load every plug-in again."""
    return package().Core()


@functools.cache
def devices() -> tuple[str, ...]:
    """Names of this machine's devices, such as CPU, GPU, or GPU.0 and GPU.1."""
    return tuple(core().available_devices)


def why_absent(device: str) -> str:
    """Why a device cannot be used here, with the cure; "" when it can."""
    seen = devices()
    # The first of two is called GPU.0, and GPU is another name of it.
    if device in ("AUTO", *seen) or f"{device}.0" in seen:
        return ""
    what, cure = _NEEDED.get(device, (device, INSTALL))
    return f"OpenVINO finds no {what}; {cure}"


def capabilities(device: str) -> tuple[str, ...]:
    """The precisions that a device computes in natively, such as FP32, BF16 and INT8."""
    asked = device_of_auto() if device == "AUTO" else device
    return tuple(core().get_property(asked, "OPTIMIZATION_CAPABILITIES"))


def device_of_auto() -> str:
    """The device that AUTO runs on: a GPU where there is one, else the CPU, never an NPU.

    AUTO itself tells the sum of what all devices can, and no one device may have all of it.
    """
    return next((device for device in devices() if device.startswith("GPU")), "CPU")


def facts(device: str) -> dict[str, str]:
    """Facts that can change a figure: an accelerator and its driver, or what AUTO chooses from."""
    if device == "AUTO":
        return {"devices": ", ".join(devices())}
    known = set(core().get_property(device, "SUPPORTED_PROPERTIES"))
    named = {ours: of for of, ours in _FACTS.items() if of in known}
    return {ours: str(core().get_property(device, of)) for ours, of in named.items()}
