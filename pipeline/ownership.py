"""Whose is what in a run's folder: nothing that this program did not make is replaced or deleted.

A folder is a run's when it has the marker file `.mipkd-run`, or what earlier versions left: a
journal, steps with their receipts, or a lock alone. What lies where a run writes and is not ours
is refused before any work; with `--force` it is renamed to `NAME.kept`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import tomllib

from mipkd.core import codec, durable
from mipkd.core.errors import UsageError
from mipkd.core.names import BUNDLE, printable
from pipeline.bundle import pack
from pipeline.receipts import RECEIPT, RECORD
from pipeline.report import write as report
from pipeline.report.results_file import report_folder
from pipeline.run import EVIDENCE, JOURNAL, as_stage_error

log = logging.getLogger(__name__)

MARKER = ".mipkd-run"
CONFIG = "config.toml"
_LOCKS = ("lock", "lock.process")
_FILES = (CONFIG, EVIDENCE, JOURNAL, *_LOCKS, MARKER)
_FOLDERS = (BUNDLE, "collected", "report/latest")
_EVENTS = ("start", "done", "failed", "remembered")  # of a journal
_MARK = "# Written by mipkd-pipeline; sha256 of what follows: "
_SHOWN = 3  # names in a message


def claim(
    root: Path, *, where: str = "--out", force: bool | None = None, dry: bool = False
) -> None:
    """Make a folder a run's own, or refuse it; with `force` what is others' is put aside.

    `force` is None of commands that have no such option; `where` is what named the folder.

    Raises:
        UsageError: the folder is not a run's, or holds others' files where a run writes.
    """
    if os.path.lexists(root) and not root.is_dir():
        raise UsageError(f"{where}: {root} is no folder", hint="name another one")
    try:
        is_new = not any(_names(root))
        ours = is_new or is_run(root)
        if not ours and not force:
            raise UsageError(
                f"{where}: {root} is not a run's folder: it holds {_shown(_names(root), root)}",
                hint="name another folder with --out; --force uses this one, and deletes nothing",
            )
        others = [] if is_new else list(_others(root) if ours else _taken(root))
        if others and not force:
            hint = "; or name another folder with --out; --force renames it to NAME.kept"
            raise UsageError(
                f"{where}: {_shown(others, root)} in {root} was not made by this program, and "
                "lies where it writes",
                hint="move it away" + (hint if force is not None else ""),
            )
        if not dry:
            for place in dict.fromkeys(_place(file, root) for file in others):
                log.warning("%s: kept as %s", place, durable.put_aside(place).name)
            _mark(root)
        else:
            _check_writable(root)
    except OSError as error:
        raise _cannot_write(root, where, error) from error


def is_run(root: Path) -> bool:
    """Whether this program made a folder, of any version."""
    if (root / MARKER).is_file():
        return True
    if {one.name for one in root.iterdir()} <= set(_LOCKS) and _are_locks(root):
        return True
    steps = ("[0-9a-f]" * 16) + "/"
    kept = (file.with_name(RECORD) for file in root.glob(f"*/{steps}{RECEIPT}"))
    return _is_journal(root / JOURNAL) or any(file.is_file() for file in kept)


def write_config(file: Path, text: str, stated_before: object) -> None:
    """Write a run's settings; a file there that was edited, or that others made, is put aside.

    `stated_before`: the settings of the run of before, which earlier versions wrote unmarked.
    """
    marked = f"{_MARK}{_sha(text)}\n{text}"
    if os.path.lexists(file) and not _is_own_config(file, stated_before):
        log.warning("%s: kept as %s: it was edited", file, durable.put_aside(file).name)
    durable.write_bytes(file, marked.encode("utf-8", "backslashreplace"))


def _names(root: Path) -> list[Path]:
    found = root.iterdir() if root.is_dir() else ()
    ignored = (*durable.LEFT_BY_SYSTEMS, f".{MARKER}{durable.PARTIAL}")  # the latter of a crash
    return [one for one in found if one.name not in ignored]


def _others(root: Path) -> Iterator[Path]:
    """What in a run's folder lies where a run writes and was not made by one."""
    bundle, latest = root / BUNDLE, report_folder(root)
    yield from (bundle / name for name in pack.others_in(bundle))
    yield from (latest / name for name in report.others_in(latest))
    yield from (root / name for name in _FILES if (root / name).is_dir())


def _taken(root: Path) -> Iterator[Path]:
    """What in a folder that is no run's lies where a run would write."""
    yield from (root / name for name in (*_FILES, *_FOLDERS) if os.path.lexists(root / name))
    yield from root.glob("kit-*.pyz")


def _place(file: Path, root: Path) -> Path:
    """What is put aside for a file: the bundle or report that it lies in, else itself."""
    folders = (root / name for name in _FOLDERS)
    return next((one for one in folders if one in (file, *file.parents)), file)


def _check_writable(root: Path) -> None:
    """Whether a folder could be made; nothing is.

    Raises:
        OSError: as of making it.
    """
    above = next(one for one in (root, *root.parents) if os.path.lexists(one))
    why = 0 if os.access(above, os.W_OK | os.X_OK) else errno.EACCES
    if why := why if above.is_dir() else errno.ENOTDIR:
        raise OSError(why, os.strerror(why), str(above))


def _mark(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if not (root / MARKER).exists():
        about = {"program": "mipkd-pipeline", "what": "folder of a run: steps, report and bundle"}
        durable.write_bytes(root / MARKER, (json.dumps(about) + "\n").encode())


def _is_journal(file: Path) -> bool:
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return False
    return any(map(_is_event, lines))


def _are_locks(root: Path) -> bool:
    """Whether the locks in a folder look like ours: one empty, the other a process's number."""
    lock, holder = (root / name for name in _LOCKS)
    numbered = not holder.exists() or holder.read_bytes()[:20].isdigit()
    return numbered and not (lock.exists() and lock.stat().st_size)


def _is_event(line: bytes) -> bool:
    try:
        stated = codec.parse_json(line)
    except ValueError:
        return False
    return isinstance(stated, dict) and "at" in stated and stated.get("event") in _EVENTS


def _is_own_config(file: Path, stated_before: object) -> bool:
    try:
        head, _, rest = file.read_bytes().decode().partition("\n")
        if head.startswith(_MARK):
            return head.removeprefix(_MARK) == _sha(rest)
        return bool(tomllib.loads(f"{head}\n{rest}") == stated_before)
    except (OSError, ValueError, RecursionError):
        return False


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _shown(files: list[Path], root: Path) -> str:
    names = sorted(printable(file.relative_to(root).as_posix()) for file in files)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _cannot_write(root: Path, where: str, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return as_stage_error(where, error)
    return UsageError(
        f"{where}: cannot write to {root}: {error.strerror}",
        hint="name a folder that you may write to",
    )
