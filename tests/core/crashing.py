"""What a process may do that works for another; imported there by its name."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from mipkd.core.apart import report
from mipkd.core.errors import UnsupportedError


class OddError(Exception):
    """It cannot be pickled and read again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def add(one: int, two: int) -> int:
    return one + two


def die_of(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def refuse(what: str, hint: str) -> None:
    raise UnsupportedError(what, hint=hint)


def raise_odd() -> None:
    raise OddError(1, 2)


def tell() -> None:
    log = logging.getLogger("crashing")
    log.debug("not asked for")
    log.info("first %d", 1)
    log.warning("second")


def wait(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    time.sleep(600)


def never_end() -> None:
    while True:
        pass


def rest(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def take(size: int) -> int:
    return len(bytes(size).replace(b"\0", b"1"))


def count_slowly(most: int) -> int:
    for number in range(most):
        report(number)
        time.sleep(0.4)
    return most
