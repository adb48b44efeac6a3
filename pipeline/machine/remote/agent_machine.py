"""A machine elsewhere that has a Python: the agent does its jobs, over any link."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mipkd.core import codec
from mipkd.core.errors import MipkdError, MissingError, StageError, UnsupportedError
from mipkd.core.measurement import Measurement
from mipkd.core.records import TargetInfo
from pipeline.bench.models import Sink
from pipeline.machine.base import (
    DeviceConfig,
    Job,
    MachineLostError,
    ignore_pixels,
    refuse_changed,
)
from pipeline.machine.remote import job_file
from pipeline.machine.remote.agent_zip import agent_bytes
from pipeline.machine.remote.link import Link, LinkError, Remote
from pipeline.machine.remote.transfer import RemotePython

log = logging.getLogger(__name__)

_BEAT_S = 3.0  # between signs that we are still here; the agent ends itself without them
_PROBE_S = 300.0  # a slow card takes a minute to load a large runtime
_QUIET_S = 5.0  # between two lines of progress
_LONGEST_PAUSE_S = 60.0


class AgentMachine:
    """A machine that keeps what it was sent under its hash, and goes on where a link broke."""

    def __init__(self, link: Link, config: DeviceConfig) -> None:
        self._config, self._link = config, link
        self.address = link.address
        self._python = RemotePython(link, config.python)
        self._folder = self._agent = ""  # there, once known

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def offers(self, targets: Sequence[str]) -> dict[str, TargetInfo]:
        """What the agent finds.

        Raises:
            MipkdError: the machine cannot be reached, or lacks a Python or numpy.
        """
        self._prepare()
        with self._python.start(self._agent, "probe", *targets) as remote:
            try:
                facts = list(self._listen(remote, time.monotonic() + _PROBE_S))
            except TimeoutError as error:
                what = f"{self.address}: {', '.join(targets)}: no answer in {_PROBE_S:g} s"
                raise StageError(what) from error
            if not facts:
                raise self._python.explain(remote)
        self._raise_error(facts[-1])
        return {name: codec.decode(TargetInfo, info) for name, info in facts[-1]["targets"].items()}

    def run(self, job: Job, take: Sink = ignore_pixels) -> tuple[Measurement, ...]:
        """Have a job done there, through broken links.

        Raises:
            MachineLostError: the link is gone for good.
            StageError: the time limit passed, or the job failed.
            MissingError: the machine no longer has what it offered.
        """
        until = time.monotonic() + self._config.time_limit_s
        progress = _Progress(f"{job.info.target} on {self.address}", until)
        with TemporaryDirectory() as name:
            file, results = Path(name) / "job.zip", Path(name) / "results.zip"
            stored = job_file.write_job(file, job.info.target, job.builts, job.settings, job.images)
            # Parts that another version of the runtime made are no parts of this job.
            parts = f"{stored.id} {json.dumps(codec.encode(job.info))}"
            folder = f"jobs/{job_file.hash_of(parts.encode())[:24]}"
            self._persist(lambda: self._attempt(file, folder, results, progress), progress)
            found, outputs = job_file.read_results(results)
        if found.job != stored.id:
            raise StageError(f"{self.address}: results of another job", hint="run it again")
        refuse_changed(self.address, job.info, found.info)
        job_file.give_outputs(outputs, stored, job.builts, take)
        return found.measurements

    def _persist(self, attempt: Callable[[], None], progress: _Progress) -> None:
        """Try until it is done, or until nothing more was done in so many tries."""
        failed, done = 0, -1
        while True:
            try:
                attempt()
                return
            except LinkError as error:
                failed = 0 if progress.done > done else failed + 1
                done = progress.done
                if failed >= self._config.tries:
                    raise MachineLostError(
                        f"{self.address}: connection lost for good: {error.what}",
                        hint="parts that are done are kept there: run the same command again",
                    ) from error
                pause_s = min(self._config.pause_s * 2**failed, _LONGEST_PAUSE_S)
                log.warning("%s; again in %g s", error.what, pause_s)
            if time.monotonic() + pause_s > progress.until:
                raise self._too_slow()
            time.sleep(pause_s)
            self._link.drop()
            self._agent = ""  # it may come back with an empty disk

    def _attempt(self, job: Path, name: str, results: Path, progress: _Progress) -> None:
        self._prepare()
        folder = f"{self._folder}/{name}"
        if not self._python.ask("ready", folder=folder)["ready"]:
            self._python.put(job.read_bytes(), folder + ".zip")
            self._python.ask("unpack", file=folder + ".zip", folder=folder)
        self._python.get(self._work(folder, progress), results)
        self._clean(folder)

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
        agent = f"{self._folder}/agent-{job_file.hash_of(data)[:16]}.pyz"
        self._python.put(data, agent)
        self._agent = agent

    def _work(self, folder: str, progress: _Progress) -> str:
        """Start the job there, or go on with it; gives the file of results there."""
        said: dict[str, Any] = {}
        pid = 0
        with self._python.start(self._agent, "work", folder) as remote:
            try:
                for said in self._listen(remote, progress.until):
                    pid = said.get("pid", pid)
                    progress.hear(said)
                if not {"results", "error"} & said.keys():
                    raise self._python.explain(remote)
            except LinkError:
                raise
            except BaseException as error:
                remote.finish(0.5)
                self._end(folder, pid)
                if isinstance(error, TimeoutError):
                    raise self._too_slow() from error
                raise
        if "error" in said:
            self._clean(folder)
        self._raise_error(said)
        return str(said["results"])

    def _listen(self, remote: Remote, until: float) -> Iterator[dict[str, Any]]:
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

    def _too_slow(self) -> StageError:
        return StageError(
            f"{self.address}: not done in {self._config.time_limit_s:g} s",
            hint="parts that are done are kept there: run the same command again, "
            "or raise device.time_limit_s",
        )

    def _end(self, folder: str, pid: int) -> None:
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

    def _raise_error(self, said: dict[str, Any]) -> None:
        """Raise what the agent said went wrong, if anything did."""
        if "error" not in said:
            return
        kinds: dict[int, type[MipkdError]] = {3: UnsupportedError, 4: MissingError}
        kind = kinds.get(said.get("exit_code", 5), StageError)
        raise kind(f"{self.address}: {said['error']}", hint=said["hint"])


class _Progress:
    """Logs how many parts are done, not too often."""

    def __init__(self, name: str, until: float) -> None:
        self.name, self.until, self.done = name, until, 0
        self._logged_at = 0.0

    def hear(self, said: dict[str, Any]) -> None:
        if "done" not in said:
            return
        self.done = max(self.done, said["done"])
        loud = time.monotonic() > self._logged_at + _QUIET_S or said["done"] == said["of"]
        if loud:
            self._logged_at = time.monotonic()
        log.log(
            logging.INFO if loud else logging.DEBUG,
            "%s: %d of %d parts: %s",
            *(self.name, said["done"], said["of"], said["what"]),
        )


def _fact(line: bytes) -> dict[str, Any] | None:
    """What the agent says is JSON; a shell or a runtime may say more."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
