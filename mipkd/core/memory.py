"""What this process holds of the machine's memory, as Linux counts it; None elsewhere."""

from contextlib import suppress
from pathlib import Path


def reset_peak() -> None:
    """Start the kernel's high-water mark anew."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int | None:
    """The largest resident size since the last reset."""
    return _status("VmHWM")


def resident_bytes() -> int | None:
    """The resident size now."""
    return _status("VmRSS")


def _status(name: str) -> int | None:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
    return None
