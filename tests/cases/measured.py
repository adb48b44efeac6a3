"""A command in a process of its own: what it said, how long it took and how much memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LOOK_S = 0.02
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measured:
    """What came of a command."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int  # of it and all that it started, together; 0 where the system does not tell

    @property
    def complaints(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def measure(*words: object, folder: Path, limit_s: float = 60) -> Measured:
    """A command of ours, started in `folder`."""
    program = [sys.executable, "-c", "from pipeline.cli import main; main()"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    start = time.monotonic()
    process = subprocess.Popen(
        [*program, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "500"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    peak, done = [0], threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, peak, done))
    watch.start()
    try:
        out, err = process.communicate(timeout=limit_s)
    finally:
        done.set()
        watch.join()
        if process.poll() is None:
            for one in _family(process.pid):
                os.kill(one, 9)
            process.communicate()
    texts = (text.decode(errors="backslashreplace") for text in (out, err))
    return Measured(process.returncode, *texts, time.monotonic() - start, peak[0])


def _watch(process: int, peak: list[int], done: threading.Event) -> None:
    while not done.wait(_LOOK_S):
        peak[0] = max(peak[0], sum(map(_resident, _family(process))))


def _family(process: int) -> list[int]:
    """A process and all that it started, as Linux tells."""
    found = [process]
    for one in found:
        with suppress(OSError):  # it has ended
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _resident(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
    return 0
