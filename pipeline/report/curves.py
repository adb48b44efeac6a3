"""A training's `metrics.jsonl`: one JSON object a line with `step` and figures."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from mipkd.core.codec import CodecError, parse_json
from mipkd.core.health import BEFORE, is_health


def read_rows(curves: Path) -> list[dict[str, float]]:
    """The lines that are whole; a run that was killed may leave half of one."""
    try:
        text = curves.read_text()
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for line in text.splitlines():
        with suppress(CodecError):
            row = parse_json(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def last_health(curves: Path) -> dict[str, float]:
    """The last figure of each kind of a training's health; of what rested at the end, too."""
    return {k: v for row in read_rows(curves) for k, v in row.items() if is_health(k)}


def psnr_before(curves: Path) -> dict[str, float]:
    """PSNR-Y in dB before the first step of a projected student, with what it is held against."""
    first = next(iter(read_rows(curves)), {})
    found = {k.removeprefix(BEFORE): v for k, v in first.items() if k.startswith(BEFORE)}
    return {"student": first["psnr_y_db"], **found} if found else {}


def series(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one figure."""
    found = {
        row["step"]: row[name]
        for row in rows
        if "step" in row and isinstance(row.get(name), int | float) and math.isfinite(row[name])
    }
    steps = sorted(found)
    return steps, [found[step] for step in steps]
