"""Where a result goes: never in the place of a file that `upscale` did not make."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray

_LONGEST_NAME = 255  # bytes, of most file systems


class ResultFile(ABC):
    """A file under construction; it has its name only when every row is there."""

    def __init__(self, file: Path, *, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
        """Raises:
        UsageError: a file is there that is none of ours, and `overwrite` is not set.
        """
        self._file, self._partial, self._overwrite = file, _beside(file), overwrite
        self._is_ours = is_ours
        self._check_place(file)
        if not _is_empty(self._partial):
            self._check_place(self._partial)
        self._out: BinaryIO = self._partial.open("wb")

    @abstractmethod
    def write(self, band_HWC: ByteArray) -> None:
        """The next rows."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what is left to be written."""

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                self._out.flush()
                os.fsync(self._out.fileno())
            self._out.close()
            if kind is None:
                self._check_place(self._file)  # what came there meanwhile
                self._partial.replace(self._file)
        finally:
            self._out.close()
            self._partial.unlink(missing_ok=True)

    def _check_place(self, file: Path) -> None:
        if not os.path.lexists(file) or self._overwrite:
            return
        if file.is_symlink() or not file.is_file() or not self._is_ours(file):
            raise UsageError(
                f"{file}: is there, and was not made by upscale: --overwrite replaces it",
                hint="or give another --out",
            )


def _is_empty(file: Path) -> bool:
    """Whether it is what a crash leaves of the first bytes."""
    return file.is_file() and not file.is_symlink() and not file.stat().st_size


def _beside(file: Path) -> Path:
    """A name for the unfinished file, no longer than its own where that is long already."""
    longer = file.with_name(file.name + ".partial")
    if len(os.fsencode(longer.name)) <= _LONGEST_NAME:
        return longer
    return file.with_name(hashlib.sha256(os.fsencode(file.name)).hexdigest()[:16] + ".partial")
