"""One run at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mipkd.core.errors import UsageError


@contextmanager
def lock_folder(root: Path) -> Iterator[None]:
    """Keep a second run out of this folder.

    Raises:
        UsageError: the folder cannot be written, or another run holds it.
    """
    lock = FileLock(root / "lock", timeout=0)
    holder = root / "lock.process"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        process = holder.read_text() if holder.is_file() else "unknown"
        raise UsageError(
            f"--out: {root} is in use by another run (process {process})",
            hint="wait for it, or give this run a folder of its own with --out",
        ) from None
    except OSError as error:
        raise UsageError(
            f"--out: cannot write to {root}: {error.strerror}",
            hint="name a folder that you may write to",
        ) from error
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()
