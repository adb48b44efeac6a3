"""The machine that measures: its CPU, how much of it we may use, what it can compute fast."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from mipkd.core.measurement import Host

# What decides the speed of a convolution, under the names that Linux and macOS give.
_FEATURES = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx_vnni": "avx_vnni",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_tile": "amx",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "neon": "neon",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
# A 64-bit processor runs the 32-bit programs of its family itself.
_FAMILIES = {"x86_64": "x86", "i386": "x86", "i686": "x86", "aarch64": "arm", "armv7l": "arm"}
_APPLE = {
    "hw.optional.neon": "neon",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}


# What kernels call every ARM core of some age: "ARMv8 Processor rev 1 (v8l)" on a Jetson Orin.
_ANY_ARM = re.compile(r"(arm|aarch)\S* processor", re.IGNORECASE)
# A board's own name: of the device tree, and what the kernel made of it where a container hides it.
_BOARDS = ("sys/firmware/devicetree/base/model", "sys/devices/soc0/machine")


def describe_host(root: Path = Path("/")) -> Host:
    """This machine; `id` is the same as long as nothing that decides its speed changes.

    What it is set to (`read_settings`) is not in it. `root` is where the file system begins.
    """
    apple = platform.system() == "Darwin"
    cpu, features = _read_apple_cpu() if apple else _read_linux_cpu(root)
    cores, memory_bytes = _cores(), _memory_bytes()
    decides = (cpu, str(cores), f"{memory_bytes / 2**30:.0f}", platform.machine(), *features)
    return Host(
        id=hashlib.sha256("\n".join(decides).encode()).hexdigest()[:12],
        cpu=cpu,
        cores=cores,
        memory_bytes=memory_bytes,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        features=features,
        emulated=is_emulated(),
    )


def is_emulated(root: Path = Path("/"), machine: str = platform.machine()) -> bool:
    """Whether another processor runs this process's instructions one by one, as qemu-user does.

    Linux tells the kernel's own architecture (6.1 and later) and the program that really runs. A
    whole machine that is emulated, kernel included, looks like any other.
    """
    kernel = _FAMILIES.get(read_text(root / "proc/sys/kernel/arch"), "")
    foreign = bool(kernel) and kernel != _FAMILIES.get(machine, kernel)
    return foreign or read_text(root / "proc/self/status").startswith("Name:\tqemu-")


class OtherPrograms:
    """What other programs take of our cores' time from now on; known on Linux only.

    Ours are as many as we may keep busy. In a container the rest of the machine is not: what
    others take there is none of ours until no other core is left.
    """

    def __init__(self) -> None:
        self._before = _cpu_times()

    def share(self) -> float:
        """From 0 to 1, of our cores together; 0 where it cannot be known."""
        (busy, total, own), (busy_before, total_before, own_before) = _cpu_times(), self._before
        passed = total - total_before
        if passed <= 0:
            return 0.0
        every, ours = os.cpu_count() or 1, _cores()
        taken = ((busy - busy_before) - (own - own_before)) / passed * every  # in cores
        return min(1.0, max(0.0, taken - (every - ours)) / ours)


def _cpu_times() -> tuple[float, float, float]:
    """Seconds, summed over cores: busy, busy or idle, and those of this process."""
    own = time.process_time()
    line = next(iter(read_text("/proc/stat").splitlines()), "")
    columns = [int(column) for column in line.split()[1:9] if column.isdigit()]
    if len(columns) < 8:
        return own, 0.0, own
    tick = os.sysconf("SC_CLK_TCK")
    idle = columns[3] + columns[4]  # idle, and idle while waiting for a disk
    return (sum(columns) - idle) / tick, sum(columns) / tick, own


def read_board_name(root: Path) -> str:
    """What a board calls itself; "" where it has no device tree."""
    return next((name for file in _BOARDS if (name := read_text(root / file))), "")


def _read_linux_cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    """Name and features from /proc/cpuinfo; a board's name where the chip's says nothing."""
    facts: dict[str, str] = {}
    for line in read_text(root / "proc/cpuinfo").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            facts.setdefault(name.strip().lower(), value.strip())
    chip = facts.get("model name", "")
    named = [read_board_name(root), chip] if _ANY_ARM.match(chip) else [chip, read_board_name(root)]
    # The last of these starts a program.
    cpu = next(filter(None, [*named, facts.get("hardware")]), "") or platform.processor()
    flags = f"{facts.get('flags', '')} {facts.get('features', '')}".split()
    return cpu or platform.machine(), name_features(flags)


def _read_apple_cpu() -> tuple[str, tuple[str, ...]]:
    features = tuple(feature for name, feature in _APPLE.items() if _sysctl(name) == "1")
    return _sysctl("machdep.cpu.brand_string") or platform.machine(), features


def name_features(flags: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for flag, name in _FEATURES.items() if flag in flags))


def _cores() -> int:
    """The cores that this process may keep busy: affinity and the container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = _quota()
    return max(1, min(cores, round(quota))) if quota else cores


def _quota() -> float | None:
    """CPUs granted by the control group, version 2 or 1; None when unlimited or unknown."""
    with suppress(ValueError):
        granted, period = read_text("/sys/fs/cgroup/cpu.max").split()
        return int(granted) / int(period)
    with suppress(ValueError, ZeroDivisionError):
        granted = read_text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = read_text("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
        return int(granted) / int(period) if int(granted) > 0 else None
    return None


def _memory_bytes() -> int:
    """The machine's memory, or less where the container may use less."""
    total = 0
    with suppress(ValueError, OSError, AttributeError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(ValueError):
            total = min(total, int(read_text(file)))
    return total


def _sysctl(name: str) -> str:
    with suppress(OSError):
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""


def read_text(file: Path | str) -> str:
    """A file of the kernel; "" for what cannot be read, such as sensors that are off."""
    with suppress(OSError):
        handle = os.open(file, os.O_RDONLY)  # a third of the time of Python's own files
        try:
            parts = iter(lambda: os.read(handle, 1 << 16), b"")
            return b"".join(parts).decode(errors="replace").strip("\0\n ")
        finally:
            os.close(handle)
    return ""
