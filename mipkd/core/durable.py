"""Files and folders that are written whole or not at all, and are on the disk when that is said.

Each is made beside its place and synced before it gets its name: neither a crash nor a loss of
power leaves half of it, and what was there before lasts until then.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

PARTIAL = ".mipkd-partial"  # ends the name of what is not yet whole, behind a dot
LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # by looking into a folder
# What may not be opened, and file systems that cannot sync folders.
_CANNOT_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EBADF)
_LONGEST = 200  # bytes of a name, so that a suffix has room: file systems allow 255


def write_bytes(file: Path, data: bytes) -> None:
    """Put `data` in the place of a file; through a link, and straight into what is no file."""
    if file.exists() and not file.is_file():  # a pipe, a terminal
        file.write_bytes(data)
        return
    file = Path(os.path.realpath(file))
    partial = file.with_name(f".{_shorten(file.name)}{PARTIAL}")
    try:
        partial.unlink(missing_ok=True)  # of a crash
        with partial.open("xb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        if file.exists():
            shutil.copymode(file, partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(file.parent)


def append_lines(file: Path, lines: list[str]) -> None:
    """Add lines; where a crash left half a line before them, they start on a line of their own."""
    with file.open("a+b") as opened:
        if opened.seek(0, os.SEEK_END):
            opened.seek(-1, os.SEEK_END)
            half = opened.read(1) != b"\n"
            lines = ["", *lines] if half else lines
        opened.write("".join(line + "\n" for line in lines).encode())
        opened.flush()
        os.fsync(opened.fileno())


@contextmanager
def new_folder(out: Path, keep: Callable[[Path], object]) -> Iterator[Path]:
    """A folder to be filled, put in the place of `out` at the end; gone after an exception.

    Where `keep` finds something in the `out` of before, that is put aside, else deleted.
    """
    partial = out.with_name(f".{out.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
        replace_folder(out, partial, keep)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(out: Path, whole: Path, keep: Callable[[Path], object]) -> None:
    """Rename `whole` to `out`; see `new_folder` for `keep`."""
    old = out.with_name(f".{out.name}.mipkd-old")
    _remove(old)
    if os.path.lexists(out):
        if keep(out):
            log.warning(
                "%s: kept as %s: something in it was not made by this program, or changed since",
                out,
                put_aside(out).name,
            )
        else:
            out.rename(old)
    whole.rename(out)
    sync_folder(out.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # what it leads to was laid there by others
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def put_aside(path: Path) -> Path:
    """Rename to the first of `NAME.kept`, `NAME.kept-2`, ... that is free; gives the new path."""
    aside, number = path.with_name(f"{path.name}.kept"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.kept-{number}")
    return path.rename(aside)


def sync_tree(folder: Path) -> None:
    """Have every file below a folder on the disk."""
    for found in sorted(folder.rglob("*")):
        if found.is_dir():
            sync_folder(found)
        elif found.is_file():
            # Windows syncs what is open for writing alone.
            _sync(found, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk, where the system can."""
    if os.name != "nt":
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    try:
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _shorten(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST])
