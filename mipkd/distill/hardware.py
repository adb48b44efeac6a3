"""Where to train, and in which precision."""

from __future__ import annotations

import logging

import torch

from mipkd.core.errors import MissingError, UsageError
from mipkd.distill import ranks

log = logging.getLogger(__name__)


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes a GPU when there is one.

    Raises:
        UsageError: a name that torch does not know.
        MissingError: a GPU that this machine, or this build of torch, does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.current().count > 1:
        name = f"cuda:{ranks.local_rank()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"distill.device: unknown name {name!r}", hint="known: auto, cpu, cuda, cuda:1"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingError(
            f"distill.device: {name}: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} NVIDIA GPUs",
            hint="--set distill.device=cpu, or install a CUDA build of torch",
        )
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 if it is set, or with "auto" if the chip computes in it; else None."""
    fast = _has_bf16(device)
    if precision == "bf16" and not fast:
        log.warning("distill.precision: this %s has no bf16 arithmetic: it will be slow", device)
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast) else None


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # public since torch 2.13
        found = torch.cpu.get_capabilities()
        return any(found.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())
