"""Measurements in a bundle: scores in `quality/NAME.json`, speed in `bench/NAME.json`.

Both are `Measurement`s, one without times, the other without scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mipkd.core.codec import decode_file, encode, read_json
from mipkd.core.errors import UsageError
from mipkd.core.measurement import REFERENCE, Measurement
from mipkd.core.names import name_of_model


def write_measurements(measurements: Sequence[Measurement], out: Path) -> None:
    """The files of all measurements, without paths and addresses of the maker's machines."""
    for kind in ("quality", "bench"):
        (out / kind).mkdir()
    for m in measurements:
        plain = replace(m, file=None, outputs=None, device="")
        if m.scores:
            _write(out / "quality" / _file(m), _without_times(plain))
        if m.target != REFERENCE:
            _write(out / "bench" / _file(m), replace(plain, scores=()))


def read_measurements(bundle: Path) -> tuple[Measurement, ...]:
    """The measurements that were written.

    Raises:
        UsageError: a file is not what it should be.
    """
    found: dict[str, Measurement] = {}
    for kind in ("quality", "bench"):
        for file in sorted((bundle / kind).glob("*.json")):
            m = decode_file(Measurement, read_json(file), file)
            if _file(m) != file.name:
                raise UsageError(f"{file}: holds figures of another model: {_file(m)[:80]!r}")
            scores = found[file.stem].scores if file.stem in found else m.scores
            found[file.stem] = replace(m, scores=scores)
    return tuple(found.values())


def _without_times(m: Measurement) -> Measurement:
    """Quality, which is the same each time: what was seen while timing is in the other file."""
    if m.target == REFERENCE:
        return m
    return replace(m, latencies=(), stream=None, conditions={}, notes=(), invalid_because="")


def _file(m: Measurement) -> str:
    """Students on targets have the plain names."""
    if m.target == REFERENCE:
        return f"{REFERENCE}-{m.role}.json"
    role = "" if m.role == "student" else f"-{m.role}"
    return f"{name_of_model(m.target, m.precision)}{role}.json"


def _write(file: Path, m: Measurement) -> None:
    file.write_text(json.dumps(encode(m), indent=1))
