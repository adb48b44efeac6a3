"""Texts for people, as files."""

from __future__ import annotations

from pathlib import Path

from mipkd.core.durable import write_bytes


def write_text(file: Path, text: str) -> None:
    """Write UTF-8, all or nothing; what is none in it, such as a file's name in Latin-1, as an
    escape."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"))
