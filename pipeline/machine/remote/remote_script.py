"""Errands around a job: the text of this file is sent to a device's Python, which needs no more.

One JSON line in, then perhaps a file's bytes; one JSON line out, then perhaps a file's bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

PATIENCE_S = 60  # without a byte from the other side, or one that it takes
_END_S = 5.0
_KEPT_S = 30 * 24 * 3600.0  # nobody came back for an unfinished job
_CHUNK = 1 << 18


def look(folder: str) -> dict[str, Any]:
    """Where files are kept, and whether this Python has numpy."""
    kept = Path(folder).expanduser()
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in kept.glob("jobs/*"):
        if left.stat().st_mtime < time.time() - _KEPT_S:
            remove(str(left)) if left.is_dir() else left.unlink()
    return {"folder": str(kept), "numpy": find_spec("numpy") is not None}


def put(file: str, size: int, sha256: str) -> dict[str, Any]:
    """Take a file; goes on after the bytes that an interrupted start left."""
    whole, partial = Path(file), Path(file + ".partial")
    if whole.is_file() and _hash(whole) == sha256:
        return {"whole": True}
    whole.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("ab") as sink:
            while not try_lock(sink):
                time.sleep(0.05)
            _fill(sink, size)
    except OSError:
        partial.unlink()
        raise
    if _hash(partial) != sha256:
        partial.unlink()
        return {"whole": False}
    partial.replace(whole)
    return {"whole": True}


def _fill(sink: IO[bytes], size: int) -> None:
    have = sink.seek(0, os.SEEK_END)
    if have > size:
        have = sink.truncate(0)
    _say({"have": have})
    while have < size:
        _limit_wait()
        data = os.read(0, min(_CHUNK, size - have))
        if not data:
            sink.flush()
            sys.exit(1)  # the sender has gone
        have += sink.write(data)


def get(file: str, offset: int) -> dict[str, Any]:
    """Give a file from `offset` on."""
    whole = Path(file)
    _say({"size": whole.stat().st_size, "sha256": _hash(whole)})
    with whole.open("rb") as source:
        source.seek(offset)
        while data := source.read(_CHUNK):
            _limit_wait()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    return {}


def ready(folder: str) -> dict[str, Any]:
    """Whether a job lies there whole."""
    return {"ready": Path(folder).is_dir()}


def unpack(file: str, folder: str) -> dict[str, Any]:
    """Make a job's folder of its zip, all or nothing."""
    partial = Path(folder + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(file) as job:
            job.extractall(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        Path(file).unlink()
    return {}


def end(folder: str, pid: int) -> dict[str, Any]:
    """See that an agent of ours does not work on a job any more; it is given time, then ended."""
    lock = Path(folder) / "lock"
    if not lock.is_file():
        return {"gone": True}
    with lock.open("r+") as held:
        if wait_for_lock(held, _END_S):
            return {"gone": True}
        if held.read().strip() != str(pid):
            return {"gone": True}  # somebody else's holds it
        os.killpg(pid, signal.SIGKILL)
        return {"gone": wait_for_lock(held, _END_S)}


def remove(folder: str) -> dict[str, Any]:
    """Remove a job, unless somebody works on it."""
    lock = Path(folder) / "lock"
    if lock.is_file():
        with lock.open("r+") as held:
            if not wait_for_lock(held, 1.0):
                return {"removed": False}
    shutil.rmtree(folder, ignore_errors=True)
    return {"removed": True}


def try_lock(file: IO[Any]) -> bool:
    """Take the lock of an open file, which lasts until it is closed; False if another has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)  # one byte is locked, where the file stands
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def wait_for_lock(held: IO[Any], limit_s: float) -> bool:
    """The same, tried for so long."""
    until = time.monotonic() + limit_s
    while not try_lock(held):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _hash(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as source:
        while data := source.read(_CHUNK):
            found.update(data)
    return found.hexdigest()


def _limit_wait() -> None:
    """The kernel ends this process when what follows takes too long."""
    signal.alarm(PATIENCE_S)


def _say(fact: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(fact).encode() + b"\n")
    sys.stdout.buffer.flush()


ERRANDS = {e.__name__: e for e in (look, put, get, ready, unpack, end, remove)}


def main() -> None:
    """One errand."""
    _limit_wait()
    asked = json.loads(sys.stdin.buffer.readline())
    signal.alarm(0)
    try:
        _say(ERRANDS[asked.pop("errand")](**asked))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"{error.filename or 'system'}: {error.strerror or error}"
        _say({"error": what, "full": full})


if __name__ == "__main__":
    main()
