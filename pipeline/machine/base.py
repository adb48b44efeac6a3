"""What a machine is, and which one `--device SCHEME://...` names.

Each module of `pipeline.machine` offers one kind as `MACHINE`, which takes a `DeviceConfig`. All
of it works without torch and pydantic: a machine elsewhere runs a part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

from mipkd.core import plugins
from mipkd.core.errors import StageError, UsageError, nearest
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built, TargetInfo
from pipeline.bench.board import describe_changes
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import Image, Sink
from targets.base import ByteArray


@dataclass(frozen=True)
class DeviceConfig:
    """The machine that measures, and how long it is waited for."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    address: str | None = None  # ssh://[user@]host[:port], adb://[SERIAL]: an Android phone
    python: str = "python3"  # there; 3.10 or later, with numpy and the runtime
    folder: str = "~/.cache/mipkd-pipeline"  # there
    ssh_config: Path | None = None  # in place of the user's own OpenSSH configuration
    benchmark_model: Path | None = None  # LiteRT's program, for a phone that does not have it
    connect_timeout_s: float = 15.0
    time_limit_s: float = 7200.0  # of one target's job
    tries: int = 5  # to connect again before anything more is done
    pause_s: float = 5.0  # before the first of them; each next one is twice as long

    def __post_init__(self) -> None:
        if not (self.connect_timeout_s > 0 and self.time_limit_s > 0):
            raise ValueError("connect_timeout_s and time_limit_s must be greater than 0")
        if self.tries < 0 or self.pause_s < 0:
            raise ValueError("tries and pause_s must be at least 0")


@dataclass(frozen=True)
class Job:
    """Models of one target to time and to give pixels."""

    info: TargetInfo  # as the machine offers it
    builts: tuple[Built, ...]
    settings: BenchSettings
    images: Iterable[Image] = ()  # read once


def ignore_pixels(_built: Built, _image: str, _sr_HWC: ByteArray) -> None:
    """A sink for jobs without images."""


class Machine(Protocol):
    """Runs models; it is the only one that knows where."""

    @property
    def address(self) -> str:
        """What reports call it; "" for the machine that runs the pipeline."""

    def offers(self, targets: Sequence[str]) -> dict[str, TargetInfo]:
        """Each target as it is on this machine, which may be unable to run it.

        Raises:
            MipkdError: it cannot be reached, or lacks what every target needs.
        """

    def run(self, job: Job, take: Sink = ignore_pixels) -> tuple[Measurement, ...]:
        """Time the job's models and give the pixels of each image to `take`.

        One measurement a model, in the job's order and without scores, which are the caller's.

        Raises:
            MachineLostError: it cannot be reached any more.
            MipkdError: it can, and the job failed.
        """

    def close(self) -> None:
        """End what runs there, and the connection."""


def refuse_changed(where: str, offered: TargetInfo, found: TargetInfo) -> None:
    """Refuse figures of a machine that is no longer what it was when they were planned.

    Raises:
        StageError: names what it is set to otherwise, where it is that.
    """
    changed = describe_changes(offered.settings, found.settings)
    same = replace(found, settings=offered.settings) == offered  # what one of both does not tell
    if changed or not same:
        raise StageError(
            f"{where}: {offered.target} is not what it was: "
            f"{changed or 'it changed while measured'}",
            hint="run the same command again",
        )


class MachineLostError(StageError):
    """The machine cannot be reached any more: other jobs would fail too."""


MachineKind = Callable[[DeviceConfig], Machine]  # what a module offers; it reaches nothing yet


@contextmanager
def connect(config: DeviceConfig) -> Iterator[Machine]:
    """The machine at the address, or without one the machine that runs this.

    Raises:
        UsageError: no such kind of address.
    """
    machine = _kind_of(config.address or "local://")(config)
    try:
        yield machine
    finally:
        machine.close()


def _kind_of(address: str) -> MachineKind:
    known = plugins.names(__package__)
    found = re.match(r"([\w-]+)://", address)
    if found is None:
        hint = "write ssh://[user@]host[:port], or adb:// for an Android phone"
        raise UsageError(f"--device: {address!r} is no address", hint=hint)
    if found[1] not in known:
        raise UsageError(f"--device: unknown kind {found[1]!r}", hint=nearest(found[1], known))
    kind: MachineKind = plugins.load(__package__, found[1], "MACHINE")
    return kind
