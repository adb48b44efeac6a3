"""What was timed on this machine, kept for its user: later plans estimate from it.

One JSON line a figure in the user's cache folder; the latest of its kind counts. A file that cannot
be read or written costs accuracy and nothing else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mipkd.core import codec, durable
from mipkd.core.ranges import Range
from pipeline.bench.host import describe_host
from pipeline.stage import digest
from targets._user_cache import user_folder

log = logging.getLogger(__name__)

FILE = "timings.jsonl"
_MOST = 2000  # lines that are kept


@dataclass(frozen=True)
class Timing:
    """How long an amount of work of some kind took."""

    seconds: Annotated[float, Range(0, 1e9)]
    amount: Annotated[float, Range(1e-9, 1e18)] = 1.0  # in the kind's own unit, such as steps
    peak_bytes: int | None = None  # of the process that did it

    @property
    def each_s(self) -> float:
        """Seconds for one of the kind's unit."""
        return self.seconds / self.amount


@dataclass(frozen=True)
class _Line:
    kind: str
    timing: Timing


class Timings:
    """The timings of this machine, by kind: a name, and all that decides how long it takes."""

    def __init__(self, file: Path | None) -> None:
        self._file, self._host = file, describe_host().id
        self._found: dict[str, Timing] = {}
        if file is not None:
            with suppress(OSError):
                for line in file.read_bytes().splitlines()[-_MOST:]:
                    self._read(line)

    def find(self, name: str, decides: Mapping[str, Any]) -> Timing | None:
        """The latest of a kind."""
        return self._found.get(self._key(name, decides))

    def note(self, name: str, decides: Mapping[str, Any], timing: Timing) -> None:
        """Keep one, in place of an earlier one of its kind."""
        kind = self._key(name, decides)
        self._found.pop(kind, None)
        self._found[kind] = timing

    def save(self) -> None:
        """Write all that are known."""
        if self._file is None:
            return
        latest = list(self._found.items())[-_MOST:]
        lines = [json.dumps(codec.encode(_Line(kind, one))) for kind, one in latest]
        try:
            durable.write_bytes(self._file, ("\n".join(lines) + "\n").encode())
        except OSError as error:
            log.debug("%s: %s", self._file, error)

    def _read(self, line: bytes) -> None:
        with suppress(ValueError):
            read = codec.decode(_Line, codec.parse_json(line))
            self._found.pop(read.kind, None)  # the latest last
            self._found[read.kind] = read.timing

    def _key(self, name: str, decides: Mapping[str, Any]) -> str:
        return f"{name} {digest({'host': self._host, **decides})}"


def open_timings() -> Timings:
    """Those of this user."""
    folder = user_folder("timings")
    return Timings(folder / FILE if folder else None)
