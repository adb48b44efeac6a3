"""By which program a step is made, when, and what is said while it is."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version as package_version
from pathlib import Path


def now() -> str:
    """The time as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def commit() -> str:
    """The git commit of this program's checkout, with "+" when changed; "" outside one."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        dirt = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return ""
    if head.returncode != 0:
        return ""
    return head.stdout.strip() + ("+" if dirt.stdout.strip() else "")


def program_version() -> str:
    """Of this program; "" when it is not installed."""
    try:
        return package_version("mipkd-pipeline")
    except ModuleNotFoundError:
        return ""


@contextmanager
def noting() -> Iterator[list[str]]:
    """Collect the messages of WARNING and above that are logged inside."""
    notes: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    handler = Notes(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield notes
    finally:
        logging.getLogger().removeHandler(handler)
