"""Whether a CPU has VNNI: without it an x86 CPU clips sums of 8-bit products."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mipkd.core.records import TargetInfo

_X86 = ("x86_64", "amd64")


def saturates(on: TargetInfo | None) -> bool:
    """Whether sums of U8 x S8 products clip at 16 bits, as on an x86 CPU without VNNI."""
    machine = on.host.system if on else platform.machine()
    features = on.host.features if on else _flags()
    is_x86 = machine.lower().endswith(_X86) or "avx2" in features
    return is_x86 and not any("vnni" in feature for feature in features)


def _flags() -> list[str]:
    """The flags of this machine's CPU, by Linux's names."""
    lines = _lines(Path("/proc/cpuinfo"))
    return next((line for line in lines if line.startswith("flags")), "").split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
