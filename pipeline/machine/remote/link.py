"""The way to a machine that has a POSIX shell: what `AgentMachine` works over."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from mipkd.core.errors import MipkdError, MissingError


class LinkError(MissingError):
    """The machine cannot be reached, or no longer; it may be possible later."""


class Link(Protocol):
    """The way to one machine."""

    @property
    def address(self) -> str:
        """What the user wrote."""

    def start(self, script: str) -> Remote:
        """Start a POSIX shell script there."""

    def drop(self) -> None:
        """Close the connection, dead or alive; the next `start` makes a new one."""

    def close(self) -> None:
        """Close the connection and leave nothing behind."""

    def explain(self, exit_code: int, complaint: str) -> MipkdError | None:
        """Why the way failed, from what a command ended with; None if the command itself did."""


class Remote:
    """A command that runs on a machine; leaving it closes its input and waits for its end."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        # A connection that is shared outlives its first command and would hold a pipe open.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=env,
            # Ctrl-C is for us: what runs there is then ended, over a link that still stands.
            start_new_session=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        self.output.close()
        self._complaints.close()

    def send(self, data: bytes | memoryview) -> bool:
        """Write to its input; False when it takes no more."""
        try:
            self.input.write(data)
            self.input.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def finish(self, limit_s: float = 10.0) -> int:
        """Close its input and wait for its end, which is forced after a while; its exit code."""
        with suppress(OSError):
            self.input.close()
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def complaint(self) -> str:
        """What it wrote to stderr."""
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace").strip()
