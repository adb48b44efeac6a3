"""A device elsewhere: what it can run, and jobs that are done there."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mipkd.core import codec
from mipkd.core.errors import MipkdError, MissingError, StageError, UnsupportedError
from mipkd.core.records import Told
from pipeline.bench import parcel
from pipeline.device.source import agent_bytes
from pipeline.device.ssh import Link, LinkError, Remote, address_of
from pipeline.device.transfer import Python

log = logging.getLogger(__name__)

_BEAT_S = 3.0  # between signs that we are still here; the agent ends itself without them
_PROBE_S = 300.0  # a slow card takes a minute to load a large runtime
_QUIET_S = 5.0  # between two lines of progress
_LONGEST_PAUSE_S = 60.0


class DeviceConfig(BaseModel):
    """A device elsewhere, and how long it is waited for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = None  # ssh://[user@]host[:port]
    python: str = "python3"  # there; 3.10 or later, with numpy and the runtime
    folder: str = "~/.cache/mipkd-pipeline"  # there
    ssh_config: Path | None = None  # in place of the user's own OpenSSH configuration
    connect_timeout_s: float = Field(15.0, gt=0)
    time_limit_s: float = Field(7200.0, gt=0)  # of one target's job
    tries: int = Field(5, ge=0)  # to connect again before anything more is done
    pause_s: float = Field(5.0, ge=0)  # before the first of them; each next one is twice as long


class Device:
    """A device that is reached by SSH; what it was sent is kept there under its hash."""

    def __init__(self, config: DeviceConfig) -> None:
        self._config = config
        self.address = address_of(config.address or "")
        self._link = Link(self.address, config.ssh_config, config.connect_timeout_s)
        self._python = Python(self._link, config.python)
        self._folder = self._agent = ""  # there, once known

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def probe(self, names: Sequence[str]) -> dict[str, Told]:
        """What the device tells of targets.

        Raises:
            MipkdError: it cannot be reached, or lacks a Python or numpy.
        """
        self._prepare()
        with self._python.start(self._agent, "probe", *names) as remote:
            try:
                facts = list(self._heard(remote, time.monotonic() + _PROBE_S))
            except TimeoutError as error:
                what = f"{self.address}: {', '.join(names)}: no answer in {_PROBE_S:g} s"
                raise StageError(what) from error
            if not facts:
                raise self._python.trouble(remote)
        self._raise_told(facts[-1])
        return {name: codec.decode(Told, told) for name, told in facts[-1]["targets"].items()}

    def carry_out(self, job: Path, id: str, told: Told, into: Path) -> Path:
        """Have a job done there, through broken links; gives its results, a file in `into`.

        Raises:
            StageError: the link is gone for good, the time limit passed, or the job failed.
            MissingError: the device no longer has what it told.
        """
        # Parts that another version of the runtime made are no parts of this job.
        name = parcel.hash_of(f"{id} {json.dumps(asdict(told))}".encode())[:24]
        until = time.monotonic() + self._config.time_limit_s
        progress = _Progress(f"{told.target} on {self.address}")
        return self._again(lambda: self._attempt(job, name, into, until, progress), until, progress)

    def _again(self, attempt: Callable[[], Path], until: float, progress: _Progress) -> Path:
        """Try until it is done, or until nothing more was done in so many tries."""
        failed, done = 0, -1
        while True:
            try:
                return attempt()
            except LinkError as error:
                failed = 0 if progress.done > done else failed + 1
                done = progress.done
                if failed >= self._config.tries:
                    raise StageError(
                        f"{self.address}: connection lost for good: {error.what}",
                        hint="parts that are done are kept there: run the same command again",
                    ) from error
                pause_s = min(self._config.pause_s * 2**failed, _LONGEST_PAUSE_S)
                log.warning("%s; again in %g s", error.what, pause_s)
            if time.monotonic() + pause_s > until:
                raise self._slow()
            time.sleep(pause_s)
            self._link.drop()
            self._agent = ""  # it may come back with an empty disk

    def _attempt(self, job: Path, name: str, into: Path, until: float, progress: _Progress) -> Path:
        self._prepare()
        folder = f"{self._folder}/jobs/{name}"
        if not self._python.ask("ready", folder=folder)["ready"]:
            self._python.put(job.read_bytes(), folder + ".zip")
            self._python.ask("unpack", file=folder + ".zip", folder=folder)
        made = self._work(folder, until, progress)
        results = into / "results.zip"
        self._python.get(made, results)
        self._clean(folder)
        return results

    def _prepare(self) -> None:
        """See that the device's side of this program lies there."""
        if self._agent:
            return
        found = self._python.ask("look", folder=self._config.folder)
        if not found["numpy"]:
            raise MissingError(
                f"{self.address}: {self._config.python} there has no numpy",
                hint=f"there: {self._config.python} -m pip install numpy",
            )
        data = agent_bytes()
        self._folder = found["folder"]
        agent = f"{self._folder}/agent-{parcel.hash_of(data)[:16]}.pyz"
        self._python.put(data, agent)
        self._agent = agent

    def _work(self, folder: str, until: float, progress: _Progress) -> str:
        """Start the job there, or go on with it; gives the file of results there."""
        said: dict[str, Any] = {}
        pid = 0
        with self._python.start(self._agent, "work", folder) as remote:
            try:
                for said in self._heard(remote, until):
                    pid = said.get("pid", pid)
                    progress.hear(said)
                if not {"results", "error"} & said.keys():
                    raise self._python.trouble(remote)
            except LinkError:
                raise
            except BaseException as error:
                remote.finish(0.5)
                self._ended(folder, pid)
                if isinstance(error, TimeoutError):
                    raise self._slow() from error
                raise
        if "error" in said:
            self._clean(folder)
        self._raise_told(said)
        return str(said["results"])

    def _heard(self, remote: Remote, until: float) -> Iterator[dict[str, Any]]:
        """What the agent says, while it is told that we are still here.

        Raises:
            TimeoutError: it goes on for too long.
        """
        lines: queue.Queue[bytes] = queue.Queue()

        def listen() -> None:
            with suppress(ValueError):  # closed under it
                for line in remote.output:
                    lines.put(line)
            lines.put(b"")

        threading.Thread(target=listen, name="listen", daemon=True).start()
        beat = time.monotonic()
        while True:
            if time.monotonic() > until:
                raise TimeoutError
            if time.monotonic() >= beat:
                remote.send(b"\n")
                beat = time.monotonic() + _BEAT_S
            try:
                line = lines.get(timeout=max(0.01, min(beat, until) - time.monotonic()))
            except queue.Empty:
                continue
            if not line:
                return
            if fact := _fact(line):
                yield fact

    def _slow(self) -> StageError:
        return StageError(
            f"{self.address}: not done in {self._config.time_limit_s:g} s",
            hint="parts that are done are kept there: run the same command again, "
            "or raise device.time_limit_s",
        )

    def _ended(self, folder: str, pid: int) -> None:
        """See that the agent has gone."""
        try:
            gone = self._python.ask("end", limit_s=20, folder=folder, pid=pid)["gone"]
        except MipkdError:
            gone = False
        if not gone:
            log.warning("%s: not known whether its program ended; it does by itself", self.address)

    def _clean(self, folder: str) -> None:
        try:
            self._python.ask("remove", folder=folder)
        except MipkdError as error:
            log.warning("%s stays there: %s", folder, error.what)

    def _raise_told(self, said: dict[str, Any]) -> None:
        """Raise what the agent said went wrong, if anything did."""
        if "error" not in said:
            return
        kinds: dict[int, type[MipkdError]] = {3: UnsupportedError, 4: MissingError}
        kind = kinds.get(said.get("exit_code", 5), StageError)
        raise kind(f"{self.address}: {said['error']}", hint=said["hint"])


class _Progress:
    """Tells of parts that are done, not too often."""

    def __init__(self, name: str) -> None:
        self.name, self.done = name, 0
        self._told = 0.0

    def hear(self, said: dict[str, Any]) -> None:
        if "done" not in said:
            return
        self.done = max(self.done, said["done"])
        loud = time.monotonic() > self._told + _QUIET_S or said["done"] == said["of"]
        if loud:
            self._told = time.monotonic()
        log.log(
            logging.INFO if loud else logging.DEBUG,
            "%s: %d of %d parts: %s",
            *(self.name, said["done"], said["of"], said["what"]),
        )


@contextmanager
def reached(config: DeviceConfig) -> Iterator[Device | None]:
    """The device that is named, or None for this machine."""
    if config.address is None:
        yield None
        return
    device = Device(config)
    try:
        yield device
    finally:
        device.close()


def _fact(line: bytes) -> dict[str, Any] | None:
    """What the agent says is JSON; a shell or a runtime may say more."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
