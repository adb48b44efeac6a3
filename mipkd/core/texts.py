"""Texts for people."""

from __future__ import annotations

from pathlib import Path

from mipkd.core.durable import write_bytes


def say_duration(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 3 h 05 min, 2 d 4 h; the last part is rounded."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest:02} min"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} d {hours} h"


def write_text(file: Path, text: str) -> None:
    """Write UTF-8, all or nothing; what is none in it, such as a file's name in Latin-1, as an
    escape."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"))
