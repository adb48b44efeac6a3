"""Power while a model runs, in joules per frame, where the board has a meter of its own.

Meters, the first that answers: `tegrastats` of a Jetson, its INA3221 sensors read directly (in a
container, where the program is missing), RAPL of x86 (most systems let only root read it: then the
report says so). Idle
power is in the figure, nothing is subtracted; what a meter does not see (carrier board, power
supply) is not. Formats after published logs of TX2, Nano, Xavier, Orin and Thor; no Jetson was here
to run them on.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Protocol

from pipeline.bench.host import read_text

_INTERVAL_S = 0.1
_FEWEST = 3  # readings; of fewer a mean says nothing
_PATIENCE_S = 3.0  # for the first reading
_TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")  # what goes into the module, or into Thor's board
_INSIDE = ("VDDQ_VDD2_1V8AO",)  # AGX Orin's memory, fed by VIN_SYS_5V0 and so counted there
_UNUSED = re.compile(r"NC(_?\d+)?")  # a channel of a sensor that is not connected
# Name, power now and what follows it: the mean, and since JetPack 7.2 a third figure.
_RAIL = re.compile(r"(?<![\w@])([A-Z][A-Z0-9_]*) (-?\d+)(mW)?((?:/-?\d+(?:mW)?){1,2})?(?![\w./])")

Work = Callable[[], object]


class Source(Protocol):
    """A meter."""

    @property
    def name(self) -> str:
        """What it measures, for the report."""

    def mean_watts(self, work: Work) -> float | None:
        """Mean power while `work` runs; None when there were too few readings."""


@dataclass(frozen=True)
class Energy:
    """What `frames` calls took, idle power included."""

    frames: int
    seconds: float
    mean_watts: float
    joules_per_frame: float
    source: str


def joules_per_frame(call: Work, source: Source, seconds: float = 2.0) -> Energy | None:
    """Energy of one call, from the mean power of as many as fit into `seconds`, at least one.

    None when the meter gave too little to tell. What `call` raises goes through.
    """
    frames, spent = 0, 0.0

    def work() -> None:
        nonlocal frames, spent
        start = perf_counter()
        while frames == 0 or spent < seconds:
            call()
            frames += 1
            spent = perf_counter() - start

    call()  # clocks and caches as in use
    watts = source.mean_watts(work)
    if watts is None:
        return None
    return Energy(frames, spent, watts, watts * spent / frames, source.name)


def power_source(root: Path = Path("/")) -> Source | None:
    """The best meter here; None without one. Takes a tenth of a second where `tegrastats` is."""
    return Tegrastats.find() or Ina3221.find(root) or Rapl.find(root)


def why_unmetered(root: Path = Path("/")) -> str:
    """Why a meter that is here cannot be read: "REASON; CURE"; "" where there is none."""
    rapl = (root / "sys/class/powercap").glob("intel-rapl:*/energy_uj")
    ina3221 = (root / "sys/bus/i2c/drivers").glob("ina3221*/*/hwmon/hwmon*/curr[123]_input")
    for file in (*sorted(rapl), *sorted(ina3221)):
        try:
            file.read_bytes()
        except PermissionError:
            return f"only root may read {file}; sudo chmod a+r {file}, until the next start"
        except OSError as error:
            return f"{file} cannot be read ({error.strerror}); see the kernel's log: sudo dmesg"
    if shutil.which("tegrastats"):
        return "tegrastats tells this user no power; some releases tell it root alone: run as root"
    return ""


@dataclass(frozen=True)
class Tegrastats:
    """The program of Jetson Linux, as a child that ends with the measurement."""

    command: tuple[str, ...]
    name: str

    @classmethod
    def find(cls) -> Tegrastats | None:
        program = shutil.which("tegrastats")
        if not program:
            return None
        command = (program, "--interval", f"{_INTERVAL_S * 1e3:.0f}")
        with suppress(OSError), _follow(command) as lines:
            if lines.first.wait(_PATIENCE_S):
                return cls(command, f"tegrastats {lines.rails}")
        return None

    def mean_watts(self, work: Work) -> float | None:
        with _follow(self.command) as lines:
            if not lines.first.wait(_PATIENCE_S):
                return None
            start = perf_counter()
            work()
            end = perf_counter()
            # Ended on its own: what it printed covers only a part.
            return None if lines.ended else _mean(lines.readings, start, end)


@dataclass(frozen=True)
class Ina3221:
    """Voltage and current of each rail, read from the kernel ten times a second."""

    rails: dict[str, tuple[Path, Path]]  # millivolts, milliamperes
    name: str

    @classmethod
    def find(cls, root: Path) -> Ina3221 | None:
        rails = {}
        drivers = root / "sys/bus/i2c/drivers"
        # Channels past the third are sums of shunt voltages, without label or without current.
        for label in sorted(drivers.glob("ina3221*/*/hwmon/hwmon*/in[123]_label")):
            channel = label.name[2]
            current = label.with_name(f"curr{channel}_input")
            name = read_text(label)
            if name and current.exists():
                rails[name] = (label.with_name(f"in{channel}_input"), current)
        found = cls(rails, "")
        reading = found._read()
        return cls(rails, f"INA3221 {reading[1]}") if reading else None

    def mean_watts(self, work: Work) -> float | None:
        readings: list[tuple[float, float]] = []
        over = threading.Event()

        def keep_reading() -> None:
            while not over.is_set():
                if reading := self._read():
                    readings.append((perf_counter(), reading[0]))
                over.wait(_INTERVAL_S)

        thread = threading.Thread(target=keep_reading, name="power", daemon=True)
        start = perf_counter()
        thread.start()
        try:
            work()
        finally:
            end = perf_counter()
            over.set()
            thread.join()
        return _mean(readings, start, end)

    def _read(self) -> tuple[float, str] | None:
        with suppress(ValueError):
            milliwatts = {
                name: int(read_text(volt)) * int(read_text(ampere)) / 1e3
                for name, (volt, ampere) in self.rails.items()
            }
            return _total(milliwatts)
        return None


@dataclass(frozen=True)
class Rapl:
    """Counters of energy in x86 processors: packages, and memory where it has its own."""

    zones: tuple[Path, ...]
    name: str

    @classmethod
    def find(cls, root: Path) -> Rapl | None:
        zones = {}
        for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
            name = read_text(folder / "name")
            if name.startswith(("package", "dram")) and read_text(folder / "energy_uj").isdigit():
                zones[folder] = name
        if not any(name.startswith("package") for name in zones.values()):
            return None
        return cls(tuple(zones), f"RAPL {' + '.join(zones.values())}")

    def mean_watts(self, work: Work) -> float | None:
        before, start = self._joules(), perf_counter()
        work()
        after, end = self._joules(), perf_counter()
        joules = 0.0
        for (first, _), (last, limit) in zip(before, after, strict=True):
            if last < first and limit <= 0:
                return None
            joules += last - first + (limit if last < first else 0.0)
        return joules / (end - start) if joules > 0 else None

    def _joules(self) -> list[tuple[float, float]]:
        """Of each zone: counted, and where the counter begins anew."""
        files = ("energy_uj", "max_energy_range_uj")
        texts = [[read_text(zone / file) for file in files] for zone in self.zones]
        return [(float(at or "nan") / 1e6, float(limit or 0) / 1e6) for at, limit in texts]


@dataclass
class _Lines:
    """What a child has printed so far."""

    readings: list[tuple[float, float]] = field(default_factory=list)  # when, watts
    first: threading.Event = field(default_factory=threading.Event)
    rails: str = ""
    ended: bool = False


@contextmanager
def _follow(command: tuple[str, ...]) -> Iterator[_Lines]:
    """The lines of a child while it runs; it is ended and reaped whatever happens.

    If this process is killed outright, the child ends at its next line: nobody reads its pipe.
    """
    lines = _Lines()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if reading := watts_of(line):
                lines.readings.append((perf_counter(), reading[0]))
                lines.rails = reading[1]
                lines.first.set()
        lines.ended = True

    thread = threading.Thread(target=read, name="tegrastats", daemon=True)
    try:
        thread.start()
        yield lines
    finally:
        child.terminate()
        try:
            child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        thread.join(timeout=2)
        if child.stdout is not None:
            child.stdout.close()


def watts_of(line: str) -> tuple[float, str] | None:
    """Power and the rails it is of, from a line of `tegrastats`; None when no power is in it.

    "VDD_IN 4940mW/4940mW" (now/mean), "POM_5V_IN 2532/2532" of JetPack 4, and the three figures a
    rail of JetPack 7.2, of which the first is taken as that of now, as before.
    """
    rails = {
        name: float(now)
        for name, now, unit, mean in _RAIL.findall(line)
        if unit or (mean and "mW" not in mean)
    }
    return _total(rails)


def _total(milliwatts: dict[str, float]) -> tuple[float, str] | None:
    """Watts of the whole and its name: the input's rail, or the sum of those that feed parts."""
    milliwatts = {n: value for n, value in milliwatts.items() if not _UNUSED.fullmatch(n)}
    total = next((name for name in _TOTALS if name in milliwatts), None)
    if total:
        # Some releases mixed the names up: no part takes more than the whole.
        believed = milliwatts[total] >= max(milliwatts.values())
        return (milliwatts[total] / 1e3, total) if believed else None
    parts = {name: value for name, value in milliwatts.items() if name not in _INSIDE}
    return (sum(parts.values()) / 1e3, " + ".join(parts)) if parts else None


def _mean(readings: list[tuple[float, float]], start: float, end: float) -> float | None:
    inside = [watts for at, watts in readings if start <= at <= end]
    return statistics.fmean(inside) if len(inside) >= _FEWEST else None
