"""Where runtimes keep what they compiled: in this user's cache folder, never beside a model.

What lies beside a model may come from somebody else, and would run in the model's place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = "mipkd-pipeline"


def engine_folder(runtime: str, *facts: str, files: Sequence[Path] = ()) -> Path | None:
    """The folder for what `runtime` compiles of `files`, by their content and by `facts`: versions
    and the device. None where no folder of this user alone can be written.
    """
    key = hashlib.sha256(repr((runtime, facts)).encode())
    for file in files:
        key.update(hashlib.sha256(file.read_bytes()).digest())
    return user_folder("engines", f"{runtime}-{key.hexdigest()[:32]}")


def user_folder(*names: str) -> Path | None:
    """A folder in this user's cache; None where no folder of this user alone can be written."""
    with contextlib.suppress(OSError, RuntimeError):  # a user without a home, a full disk
        folder = _cache_home().joinpath(_NAME, *names)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_own(folder) else None
    return None


def _cache_home() -> Path:
    """As each system has it.

    Raises:
        RuntimeError: nobody knows where this user's home is.
    """
    if sys.platform == "win32":
        stated, usual = os.environ.get("LOCALAPPDATA", ""), Path("AppData", "Local")
    elif sys.platform == "darwin":
        stated, usual = "", Path("Library", "Caches")
    else:  # https://specifications.freedesktop.org/basedir: one that is relative is ignored
        stated, usual = os.environ.get("XDG_CACHE_HOME", ""), Path(".cache")
    return Path(stated) if Path(stated).is_absolute() else Path.home() / usual


def _is_own(folder: Path) -> bool:
    """Whether it is this user's, and nobody else writes there."""
    if not hasattr(os, "getuid"):
        return True  # Windows: the profile's own rights
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022
