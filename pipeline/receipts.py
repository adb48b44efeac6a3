"""What a step notes beside its record: what was asked, what it took, and the files it made.

A remembered step is checked against it before it is used: by size and time of each file, and by
content where these differ, so that a run that was copied is read once more and no oftener.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mipkd.core import codec, durable

RECEIPT, RECORD = "receipt.json", "record.json"
_TICK_NS = 20_000_000  # the clocks of file systems go no coarser where steps lie


@dataclass(frozen=True)
class Stamp:
    """A file as a step left it."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Receipt:
    """All that is known of a step beside its record."""

    asked: dict[str, Any]  # what its key is a hash of
    label: str
    seconds: float
    peak_rss_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    commit: str = ""
    program: str = ""
    ended: str = ""
    files: dict[str, Stamp] | None = None  # None: made before they were noted
    contents: str = ""  # a hash over what it made, times and other floats of the record left out
    made_from: dict[str, str] = field(default_factory=dict)  # contents of other steps, by key


def read(folder: Path) -> Receipt:
    """A step's receipt.

    Raises:
        OSError, ValueError: it is not there, or damaged.
    """
    return codec.decode(Receipt, codec.parse_json((folder / RECEIPT).read_bytes()))


def write(receipt: Receipt, folder: Path) -> None:
    """Store it in a step's folder."""
    text = json.dumps(codec.encode(receipt), indent=2)
    durable.write_bytes(folder / RECEIPT, text.encode())


def seal(receipt: Receipt, folder: Path) -> Receipt:
    """With stamps of all files in the folder.

    Raises:
        OSError, ValueError: one cannot be read.
    """
    files = {name: _stamp(folder / name) for name in _names(folder)}
    # A change that comes within the same tick of the clock would not be seen.
    newest = max((one.mtime_ns for one in files.values()), default=0)
    time.sleep(min(max(0, newest + _TICK_NS - time.time_ns()), _TICK_NS) / 1e9)
    return replace(receipt, files=files, contents=_contents(folder, files))


def find_change(folder: Path, receipt: Receipt) -> tuple[str, Receipt]:
    """The first file that is gone or changed, "" without one; the receipt with renewed stamps."""
    files = dict(receipt.files or {})
    for name, known in files.items():
        try:
            found = (folder / name).stat()
            if (found.st_size, found.st_mtime_ns) == (known.size, known.mtime_ns):
                continue
            files[name] = _stamp(folder / name)
        except OSError:
            return name, receipt
        if files[name].sha256 != known.sha256:
            return name, receipt
    return "", replace(receipt, files=files) if receipt.files is not None else receipt


def has_others(folder: Path) -> bool:
    """Whether a step's folder holds what the step did not make, as far as can be told."""
    try:
        made = read(folder).files or {}
        return any(
            name not in made or hash_file(folder / name) != made[name].sha256
            for name in _names(folder)
        )
    except (OSError, ValueError):
        return True


def find_changed_file(made: Path) -> Path | None:
    """The file that was changed since, of the step in whose folder the path `made` lies."""
    folder = next((one for one in made.parents if (one / RECEIPT).is_file()), None)
    if folder is None:
        return None
    try:
        name, _ = find_change(folder, read(folder))
    except (OSError, ValueError):
        return folder / RECEIPT
    return folder / name if name else None


def hash_file(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return Stamp(hash_file(file), found.st_size, found.st_mtime_ns)


def _names(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name != RECEIPT:
            yield name


def _contents(folder: Path, files: Mapping[str, Stamp]) -> str:
    stated = {name: one.sha256 for name, one in files.items() if name != RECORD}
    record = _without_floats(codec.parse_json((folder / RECORD).read_bytes()))
    text = json.dumps([stated, record], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_floats(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_floats(one) for one in value]
    return None if isinstance(value, float) else value
