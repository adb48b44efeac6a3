"""A machine for tests and for authors of plug-ins: this one, worked on as if it were elsewhere.

`--device fake://NAME` starts the agent by a plain shell: all that `ssh://` does but the way there.
Its folder is removed at the end. It counts as another machine: no float layers are searched on it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace

from mipkd.core.errors import MipkdError
from pipeline.machine.base import DeviceConfig
from pipeline.machine.remote.agent_machine import AgentMachine
from pipeline.machine.remote.link import LinkError, Remote


class ShellLink:
    """A shell of this machine; the first `drops` commands find no connection."""

    def __init__(self, address: str, folder: str, drops: int = 0) -> None:
        self.address, self._folder, self.drops = address, folder, drops

    def start(self, script: str) -> Remote:
        self.drops -= 1
        return Remote(["sh", "-c", "exit 255" if self.drops >= 0 else script])

    def drop(self) -> None:
        """Nothing is shared."""

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def explain(self, exit_code: int, complaint: str) -> MipkdError | None:
        return LinkError(f"{self.address}: no connection") if exit_code == 255 else None


def _machine(config: DeviceConfig) -> AgentMachine:
    folder = tempfile.mkdtemp(prefix="mipkd-fake-")
    link = ShellLink(config.address or "", folder)
    return AgentMachine(link, replace(config, python=sys.executable, folder=folder))


MACHINE = _machine
