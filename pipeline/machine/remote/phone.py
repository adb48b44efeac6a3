"""What an Android phone says of itself over adb: its chip and memory, how hot it is.

`getprop` and /proc are read, and `dumpsys thermalservice` (Android 10 and later), whose status is
NONE as long as nothing is slowed down
(https://developer.android.com/reference/android/os/PowerManager#THERMAL_STATUS_NONE).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from mipkd.core.measurement import Host
from pipeline.bench.host import name_features
from pipeline.machine.remote.adb_shell import AdbShell

_STATUS = ("NONE", "LIGHT", "MODERATE", "SEVERE", "CRITICAL", "EMERGENCY", "SHUTDOWN")
_FACTS = {
    "maker": "getprop ro.product.manufacturer",
    "model": "getprop ro.product.model",
    "soc": "getprop ro.soc.model",
    "platform": "getprop ro.board.platform",
    "android": "getprop ro.build.version.release",
    "build": "getprop ro.build.id",
    "abi": "getprop ro.product.cpu.abi",
    "kernel": "uname -r",
    "cores": "nproc",
    "memory": "grep MemTotal /proc/meminfo",
    "features": "grep -m1 -i ^features /proc/cpuinfo",
}
_SENSOR = re.compile(r"Temperature\{mValue=(-?[\d.]+), mType=(\d+), mName=([^,}]+)")
_HOT_TYPES = {"0", "1", "2", "3", "9"}  # CPU, GPU, battery, skin, NPU: degrees; others are not


@dataclass(frozen=True)
class PhoneFacts:
    """A phone as a host, and what of its system can change a figure."""

    host: Host
    versions: dict[str, str]


def describe_phone(shell: AdbShell) -> PhoneFacts:
    """The phone that answers; what it does not tell is left out."""
    script = "; ".join(f"echo {name}=$({command})" for name, command in _FACTS.items())
    lines = (line.partition("=") for line in shell.run(script).splitlines())
    facts = {name: value.strip() for name, _, value in lines if name in _FACTS}
    name = " ".join(filter(None, (facts.get("maker"), facts.get("model"))))
    chip = facts.get("soc") or facts.get("platform") or ""
    cpu = ", ".join(filter(None, (name, chip))) or "unknown phone"
    memory = re.search(r"(\d+) kB", facts.get("memory", ""))
    memory_bytes = int(memory[1]) * 1024 if memory else 0
    cores = int(facts["cores"]) if facts.get("cores", "").isdigit() else 1
    features = name_features(facts.get("features", "").lower().split())
    decides = (cpu, str(cores), f"{memory_bytes / 2**30:.0f}", facts.get("abi", ""), *features)
    host = Host(
        id=hashlib.sha256("\n".join(decides).encode()).hexdigest()[:12],
        cpu=cpu,
        cores=cores,
        memory_bytes=memory_bytes,
        system=" ".join(("Android", facts.get("android", ""), facts.get("kernel", ""))).strip(),
        features=features,
    )
    android = " ".join(filter(None, (facts.get("android"), facts.get("build"))))
    return PhoneFacts(host, {"android": android} if android else {})


@dataclass(frozen=True)
class Thermal:
    """How hot the phone is, and whether that slows it down."""

    status: int | None  # of Android's; None where it does not tell
    hottest: tuple[float, str] | None  # degrees Celsius, and of which sensor

    @property
    def is_known(self) -> bool:
        """Whether it tells if it is slowed down."""
        return self.status is not None

    @property
    def throttled(self) -> str:
        """What slows the phone down; "" when nothing is known to."""
        if not self.status:
            return ""
        return f"throttled: Android's thermal status was {self._word} ({self.status}), not NONE (0)"

    def conditions(self, when: str) -> dict[str, str]:
        """For the record of a measurement."""
        found = {f"thermal status {when}": self._word} if self.is_known else {}
        if self.hottest:
            found[f"temperature {when}"] = f"{self.hottest[1]} {self.hottest[0]:.1f} °C"
        return found

    @property
    def _word(self) -> str:
        status = self.status or 0
        return _STATUS[status] if status < len(_STATUS) else str(status)


def read_thermal(shell: AdbShell) -> Thermal:
    """What `dumpsys thermalservice` prints now."""
    printed = shell.run("dumpsys thermalservice", failing=True)
    status = re.search(r"^Thermal Status: (\d+)", printed, re.MULTILINE)
    # What it keeps of earlier ("Cached") is stale.
    now = printed.partition("Current temperatures from HAL:")[2].partition("Current cooling")[0]
    sensors = [
        (float(value), name)
        for value, kind, name in _SENSOR.findall(now)
        if kind in _HOT_TYPES and float(value) > 0  # a sensor that is not fitted reads 0
    ]
    return Thermal(int(status[1]) if status else None, max(sensors, default=None))
