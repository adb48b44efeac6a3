"""Texts for people."""

from __future__ import annotations

from pathlib import Path

from mipkd.core.durable import write_bytes


def say_duration(seconds: float) -> str:
    """As people say it: 45 s, 14 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} min" if minutes < 90 else f"{hours} h" + (f" {rest} min" if rest else "")


def write_text(file: Path, text: str) -> None:
    """Write UTF-8, all or nothing; what is none in it, such as a file's name in Latin-1, as an
    escape."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"))
