"""The board that measures: what it is set to, and what it did meanwhile (Linux, Jetson first).

Only files under /proc, /sys, /etc and /var are read, and `nvpmodel -q` and `vcgencmd` are run where
they are on PATH; nothing needs root. Names are those of the kernel's drivers and of what users of
such boards have published, L4T 32 to 38, and from memory of the Jetson Linux Developer Guide. None
of it could be run on a Jetson by us: the tests read trees made after those sources.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.bench.host import read_board_name, read_text

log = logging.getLogger(__name__)

_ROOT = Path("/")
_GPUS = re.compile(r"gpu|gv11b|gp10b|ga10b|gb10b|mali|npu")
_OFF_MC = -40_000  # sensors of units that are powered down say -256 degrees
_LIMITS = ("CPU clock limit", "GPU clock limit")  # a board that is hot lowers them too
# Facts of `read_board` that stay until somebody sets them otherwise.
_SETTINGS = (
    *("board", "power mode", "container", "cores online"),
    *("CPU governor", "CPU clock floor", "GPU governor", "GPU clock floor"),
    *_LIMITS,
)


def read_board(root: Path = _ROOT) -> dict[str, str]:
    """What can change a figure and can be read; what cannot be read is left out.

    Clocks are those of the moment, their floors and limits those set now (by `nvpmodel`,
    `jetson_clocks` or a governor). `root` is where the file system begins.
    """
    found = {
        "board": _board(root),
        "L4T": _l4t(root),
        "JetPack": _package(root, "nvidia-jetpack"),
        "power mode": _power_mode(root),
        "container": _container(root),
        "load": read_text(root / "proc/loadavg").rpartition(" ")[0].rpartition(" ")[0],
        "cores online": read_text(root / "sys/devices/system/cpu/online"),
        "CPU governor": _each(p / "scaling_governor" for p in _cpus(root)),
        "CPU clock": _range_mhz([p / "scaling_cur_freq" for p in _cpus(root)], 1e3),
        "CPU clock floor": _range_mhz([p / "scaling_min_freq" for p in _cpus(root)], 1e3),
        "CPU clock limit": _range_mhz([p / "scaling_max_freq" for p in _cpus(root)], 1e3),
        "GPU governor": _each(p / "governor" for p in _gpus(root)),
        "GPU clock": _range_mhz([p / "cur_freq" for p in _gpus(root)], 1e6),
        "GPU clock floor": _range_mhz([p / "min_freq" for p in _gpus(root)], 1e6),
        "GPU clock limit": _range_mhz([p / "max_freq" for p in _gpus(root)], 1e6),
        "temperatures": ", ".join(f"{n} {t:.1f} °C" for n, t in _temperatures(_zones(root))),
    }
    return {name: value for name, value in found.items() if value}


def read_settings(root: Path = _ROOT) -> dict[str, str]:
    """What of `read_board` a machine is set to: figures under other settings are other figures.

    While it cools itself the limits of its clocks are its own work, and left out.
    """
    cools = any(
        state > 0 for state in _numbers([at / "cur_state" for at in _cooling_devices(root)])
    )
    found = read_board(root)
    return {n: found[n] for n in _SETTINGS if n in found and not (cools and n in _LIMITS)}


def describe_changes(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The settings that both tell and that differ, in words; "" for none."""
    changed = [n for n in _SETTINGS if before.get(n, after.get(n)) != after.get(n, before.get(n))]
    return ", ".join(f"{name} {before[name]}, then {after[name]}" for name in changed)


class Watch:
    """A look at the board at the start, every second of a measurement, and at its end.

    On a tree of a Jetson Orin's files (9 zones, 12 cooling devices, 8 cores) a look took 0.3 ms of
    a server's core, the thread 0.05 % of it; a sensor behind a bus will take longer. A cooling
    device that worked for less than a second is seen by chance, an event that the board counts
    always.
    """

    def __init__(self, root: Path = _ROOT, *, every_s: float = 1.0) -> None:
        self._root, self._every_s = root, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="watch", daemon=True)
        self._hottest: tuple[float, str] | None = None
        self._clocks: dict[str, list[float]] = {}
        self._states: dict[Path, list[int]] = {}  # of a cooling device: at first, highest
        self._after: dict[str, int] = {}

    def __enter__(self) -> Watch:
        root = self._root
        self._zones = _zones(root)
        self._files = {
            "CPU": ([p / "scaling_cur_freq" for p in _cpus(root)], 1e3),
            "GPU": ([p / "cur_freq" for p in _gpus(root)], 1e6),
        }
        self._devices = _cooling_devices(root)
        self._before, self._stops = _counters(root), _stops(root)
        self._pi = [_read_pi()]
        self._look(clocks=False)  # nothing runs yet: they would be those of an idle board
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        self._after = _counters(self._root)
        self._pi.append(_read_pi())
        if self.throttled:
            log.warning("%s: let it cool, or choose a mode that it can keep up", self.throttled)

    @property
    def throttled(self) -> str:
        """What slowed the board down, with figures; "" when nothing is known to have."""
        reasons = [
            _describe_slowing(self._devices[at], *states) for at, states in self._states.items()
        ]
        for name, count in self._after.items():
            rose = count - self._before.get(name, count)
            reasons.append(f"throttled: {name} rose by {rose}" if rose > 0 else "")
        reasons.append(_describe_pi(*self._pi))
        return "; ".join(dict.fromkeys(reason for reason in reasons if reason))

    @property
    def conditions(self) -> dict[str, str]:
        """The highest temperature, and between what the clock of the fastest core or GPU moved."""
        found = {}
        if self._hottest:
            found["highest temperature"] = f"{self._hottest[1]} {self._hottest[0]:.1f} °C"
        for name, seen in self._clocks.items():
            found[f"{name} clock while measured"] = _as_mhz(seen)
        if stops := _stops(self._root) - self._stops:
            found["CPU quota"] = f"stopped it {stops} times while measured"
        return found

    def _keep_looking(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()

    def _look(self, *, clocks: bool = True) -> None:
        hottest = max(((t, name) for name, t in _temperatures(self._zones)), default=None)
        self._hottest = max((t for t in (self._hottest, hottest) if t), default=None)
        for name, (files, unit) in self._files.items() if clocks else ():
            # The fastest of them does the work; the others may idle at their lowest clock.
            fastest = max(_numbers(files), default=None)
            if fastest is not None:
                self._clocks.setdefault(name, []).append(fastest / unit)
        for at in self._devices:
            for state in _numbers([at / "cur_state"]):
                first, highest = self._states.get(at, (state, state))
                self._states[at] = [first, max(highest, state)]


# Processors alone; `hot-surface-alert` of a Jetson warns at 70 degrees and slows nothing down, a
# fan's state is no throttling, and the states of firmware ("TCPU") are settings.
_SLOWS = re.compile(r"throttle-alert|\bcpu|\bgpu|^processor|devfreq|powerclamp", re.IGNORECASE)


def _cooling_devices(root: Path) -> dict[Path, str]:
    """Folder and type of those that cool by slowing a processor down."""
    folders = sorted((root / "sys/class/thermal").glob("cooling_device*"))
    types = {folder: read_text(folder / "type") for folder in folders}
    return {
        folder: kind
        for folder, kind in types.items()
        if _SLOWS.search(kind) and "fan" not in kind.lower()
    }


def _describe_slowing(kind: str, first: int, highest: int) -> str:
    """In words; -1 is the powerclamp's way to say that it is off."""
    if highest <= 0:
        return ""
    unit = "GPU" if re.search("gpu|devfreq", kind, re.IGNORECASE) else "CPU"
    unit = "SoC" if re.match("soc|cv", kind) else unit
    how = f"rose to state {highest}" if first <= 0 else f"was at state {first} from the start"
    return f"{unit} throttled: cooling device '{kind}' {how}"


def _counters(root: Path) -> dict[str, int]:
    """Events that the board counts itself since it started, by name."""
    found: dict[str, int] = {}
    for file in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        # A Jetson's supply: under-voltage, average and instantaneous over-current.
        enabled = file.with_name(file.name.replace("event_cnt", "throt_en"))
        for count in _numbers([file]) if read_text(enabled) != "0" else ():
            found[f"{file.name} (over-current or under-voltage of the supply)"] = count
    for kind in ("core", "package"):
        pattern = f"cpu[0-9]*/thermal_throttle/{kind}_throttle_count"
        files = sorted((root / "sys/devices/system/cpu").glob(pattern))
        if counts := _numbers(files):  # each core has the package's count
            found[f"{kind}_throttle_count of x86"] = sum(counts) if kind == "core" else max(counts)
    return found


def _read_pi() -> int:
    """Bits of `get_throttled`: 1 to 3 are set while slowed down, 17 to 19 once it has been."""
    match = re.search(r"throttled=0x([0-9a-fA-F]+)", _run("vcgencmd", "get_throttled"))
    return int(match[1], 16) if match else 0


def _describe_pi(before: int, after: int) -> str:
    """What its firmware did: at either end, or in between where it had not been before."""
    names = {1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
    seen = before | after | (after & ~before) >> 16
    what = ", ".join(name for bit, name in names.items() if seen >> bit & 1)
    return f"CPU throttled: get_throttled from 0x{before:x} to 0x{after:x} ({what})" if what else ""


def _container(root: Path) -> str:
    """What the control group of this process may use, where that is limited (version 2)."""
    group = root / "sys/fs/cgroup"
    limits = []
    quota, _, period = read_text(group / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        limits.append(f"{int(quota) / int(period):g} CPUs")
    if (most := read_text(group / "memory.max")).isdigit():
        limits.append(f"{int(most) / 2**30:.1f} GiB")
    return f"limited to {' and '.join(limits)}" if limits else ""


def _stops(root: Path) -> int:
    """How often the control group has used up its share of the CPU before its period ended."""
    found = re.search(r"nr_throttled (\d+)", read_text(root / "sys/fs/cgroup/cpu.stat"))
    return int(found[1]) if found else 0


def _board(root: Path) -> str:
    """By the devicetree, or by the BIOS of a PC."""
    pc = root / "sys/class/dmi/id"
    of_pc = f"{read_text(pc / 'sys_vendor')} {read_text(pc / 'product_name')}".strip()
    return read_board_name(root) or of_pc


def _l4t(root: Path) -> str:
    """Such as "36.4.7", from "# R36 (release), REVISION: 4.7, ..." or the core package."""
    line = read_text(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", line)
    return f"{match[1]}.{match[2]}" if match else _package(root, "nvidia-l4t-core")


def _package(root: Path, name: str) -> str:
    """The version of an installed Debian package; "" when it is not installed."""
    here, installed = False, False
    with suppress(OSError), (root / "var/lib/dpkg/status").open(errors="replace") as lines:
        for line in lines:
            key, _, value = line.rstrip("\n").partition(": ")
            if key == "Package":
                here, installed = value == name, False
            elif here and key == "Status":
                installed = value.endswith(" installed")
            elif here and installed and key == "Version":
                return value
    return ""


def _power_mode(root: Path) -> str:
    """Name and number of a Jetson's mode, such as "MAXN (0)"."""
    mode = re.search(r"NV Power Mode:\s*(\S+)\s+(\d+)", _run("nvpmodel", "-q"))
    if mode:
        return f"{mode[1]} ({mode[2]})"
    status = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status"))
    if not status:
        return ""
    number = int(status[1])
    modes = read_text(root / "etc/nvpmodel.conf")
    named = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", modes)
    return f"{named[1]} ({number})" if named else str(number)


def _cpus(root: Path) -> list[Path]:
    """One folder a cluster: cores that share a clock share a folder."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    return [Path(p) for p in dict.fromkeys(os.path.realpath(folder) for folder in folders)]


def _gpus(root: Path) -> list[Path]:
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    return [folder for folder in folders if _GPUS.search(folder.name)]


def _zones(root: Path) -> list[tuple[str, Path]]:
    folders = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    return [(read_text(folder / "type") or folder.name, folder / "temp") for folder in folders]


def _temperatures(zones: list[tuple[str, Path]]) -> Iterator[tuple[str, float]]:
    """In degrees Celsius; zones that are off cannot be read, or give nonsense."""
    for name, file in zones:
        for millidegrees in _numbers([file]):
            if millidegrees > _OFF_MC:
                yield name, millidegrees / 1e3


def _each(files: Iterator[Path]) -> str:
    return ", ".join(dict.fromkeys(text for file in files if (text := read_text(file))))


def _range_mhz(files: list[Path], unit: float) -> str:
    return _as_mhz([number / unit for number in _numbers(files)])


def _as_mhz(clocks: list[float]) -> str:
    ends = dict.fromkeys(f"{clock:.0f}" for clock in (min(clocks), max(clocks))) if clocks else ()
    return f"{' to '.join(ends)} MHz" if ends else ""


def _numbers(files: list[Path]) -> list[int]:
    """Of the files that can be read and hold a whole number."""
    texts = [read_text(file) for file in files]
    return [int(text) for text in texts if re.fullmatch(r"-?\d+", text)]


def _run(*command: str) -> str:
    """What a program of the board prints; "" when there is none or it does not answer."""
    with suppress(OSError, subprocess.TimeoutExpired):
        if shutil.which(command[0]):
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=5,
                check=False,
            )
            return done.stdout
    return ""
