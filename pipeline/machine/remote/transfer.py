"""A device's Python: errands it does for us, files to it and from it."""

from __future__ import annotations

import hashlib
import inspect
import json
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mipkd.core.errors import MipkdError, MissingError, StageError
from pipeline.machine.remote import remote_script
from pipeline.machine.remote.link import Link, LinkError, Remote

_MARK = b"mipkd-pipeline on Python "
_CHUNK = 1 << 18
_OLDEST = (3, 10)
_OTHER = "name another: --set device.python=/path/to/python3"

# Any Python since 2.7 reads this. The version goes first: an older one would not read the rest.
_START = (
    "import sys; sys.stdout.write({mark!r} + '%d.%d.%d' % tuple(sys.version_info[:3]) + chr(10)); "
    "sys.stdout.flush(); sys.version_info < (3, 10) or "
    "eval(compile(sys.stdin.buffer.read({length}), 'errand', 'exec'), {{'__name__': '__main__'}})"
)


@dataclass
class Talk:
    """An errand under way."""

    python: RemotePython
    remote: Remote

    def line(self) -> bytes:
        """The next line that it writes.

        Raises:
            MipkdError: it ended instead.
        """
        if line := self.remote.output.readline():
            return line
        raise self.python.explain(self.remote)

    def answer(self) -> dict[str, Any]:
        """What it answers.

        Raises:
            StageError: it could not do it.
        """
        answer: dict[str, Any] = json.loads(self.line())
        if "error" in answer:
            full = "free some space there, or name another place: --set device.folder=/mnt/..."
            raise StageError(
                f"{self.python.link.address}: {answer['error']}",
                hint=full if answer["full"] else "",
            )
        return answer


class RemotePython:
    """A Python on a device."""

    def __init__(self, link: Link, command: str) -> None:
        self.link, self.command = link, command
        home, slash, rest = command.partition("/")
        inside = home == "~" and slash
        self._quoted = f'"$HOME"/{shlex.quote(rest)}' if inside else shlex.quote(command)

    def start(self, *arguments: str) -> Remote:
        """Start it with arguments."""
        # Not by `exec`: the shell tells a death by a signal from a link that broke.
        return self.link.start(f"cd /; {self._quoted} {shlex.join(arguments)}; exit $?")

    def ask(self, errand: str, *, limit_s: float = 120.0, **asked: Any) -> dict[str, Any]:
        """The answer to an errand of `remote_script.py`."""
        with self._talk(errand, limit_s, **asked) as talk:
            return talk.answer()

    def put(self, data: bytes, file: str) -> None:
        """Copy data into a file there, unless it is there; its hash is compared.

        Raises:
            MipkdError: no connection, or no space left there.
        """
        size, sha256 = len(data), hashlib.sha256(data).hexdigest()
        for _ in range(2):  # the rest of an interrupted copy may be damaged
            with self._talk("put", None, file=file, size=size, sha256=sha256) as talk:
                answer = talk.answer()
                if "have" in answer:
                    talk.remote.send(memoryview(data)[answer["have"] :])
                    answer = talk.answer()
            if answer["whole"]:
                return
        raise StageError(f"{self.link.address}: {file} arrives damaged each time")

    def get(self, file: str, into: Path) -> None:
        """Copy a file from there; goes on after the bytes that an interrupted start left."""
        partial = into.with_name(into.name + ".partial")
        with (
            partial.open("ab") as sink,
            self._talk("get", None, file=file, offset=sink.tell()) as t,
        ):
            promised = t.answer()
            left = promised["size"] - sink.tell()
            while left > 0 and (data := t.remote.output.read(min(_CHUNK, left))):
                left -= sink.write(data)
            if left > 0:
                raise self.explain(t.remote)
        with partial.open("rb") as found:
            same = hashlib.file_digest(found, "sha256").hexdigest() == promised["sha256"]
        if not same:
            partial.unlink()
            raise LinkError(f"{self.link.address}: {file} arrived damaged")
        partial.replace(into)

    def explain(self, remote: Remote) -> MipkdError:
        """Why a command ended early."""
        code, complaint = remote.finish(), remote.complaint()
        where = self.link.address
        if (broken := self.link.explain(code, complaint)) is not None:
            return broken
        if code in (126, 127):
            return MissingError(f"{where}: no Python there: {self.command}", hint=_OTHER)
        if code < 0:
            return LinkError(f"{where}: no answer in time")
        last = f": {complaint.splitlines()[-1]}" if complaint else ""
        return StageError(f"{where}: its program ended with exit code {code}{last}")

    @contextmanager
    def _talk(self, errand: str, limit_s: float | None, **asked: Any) -> Iterator[Talk]:
        source = inspect.getsource(remote_script).encode()
        code = _START.format(mark=_MARK.decode(), length=len(source))
        with self.start("-c", code) as remote:
            watch = threading.Timer(limit_s or threading.TIMEOUT_MAX, remote.process.kill)
            watch.daemon = True
            watch.start()
            try:
                talk = Talk(self, remote)
                self._skip_greeting(talk)
                remote.send(source + json.dumps({"errand": errand, **asked}).encode() + b"\n")
                yield talk
            finally:
                watch.cancel()

    def _skip_greeting(self, talk: Talk) -> None:
        """Leave out what the user's shell may say first.

        Raises:
            MissingError: the Python there is too old.
        """
        while not (line := talk.line()).startswith(_MARK):
            pass
        version = line.removeprefix(_MARK).decode().strip()
        if tuple(map(int, version.split(".")[:2])) < _OLDEST:
            raise MissingError(
                f"{self.link.address}: {self.command} there is Python {version}, "
                "3.10 or later is needed",
                hint=_OTHER,
            )
