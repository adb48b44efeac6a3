"""Texts for people, as files."""

from __future__ import annotations

from pathlib import Path


def write_text(file: Path, text: str) -> None:
    """Write UTF-8; what is none in it, such as a file's name in Latin-1, as an escape."""
    file.write_text(text, encoding="utf-8", errors="backslashreplace")
