"""What a process takes of the machine, as Linux counts it; elsewhere as psutil does, or None."""

import os
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


def held_bytes(process: int) -> int | None:
    """What another process holds now, on Linux without the files that it maps; None: unknown."""
    own = [_status(name, str(process)) for name in ("RssAnon", "RssShmem", "VmSwap")]
    known = [size for size in own if size is not None]
    return sum(known) if known else _resident_elsewhere(process)


def cpu_seconds(process: int) -> float | None:
    """What another process had of the CPU so far, all threads together; None: unknown."""
    with suppress(OSError, ValueError, IndexError):
        # The name before these fields stands in brackets and may hold any character.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    try:
        import psutil
    except ImportError:
        return None
    with suppress(psutil.Error):
        times = psutil.Process(process).cpu_times()
        return float(times.user + times.system)
    return None


def _resident_elsewhere(process: int) -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    with suppress(psutil.Error):
        return int(psutil.Process(process).memory_info().rss)
    return None


def _status(name: str, process: str = "self") -> int | None:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
    return None
