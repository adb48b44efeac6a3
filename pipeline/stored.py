"""Records as they lie in a run's folder: paths in them start at the folder, so that it can move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mipkd.core import codec, durable

_HERE = "run:"  # stands for the run's folder


def read_record(file: Path, kind: Any, root: Path) -> Any:
    """The record in a file of the run in `root`.

    Raises:
        OSError, ValueError: it is not there, or not of this kind.
    """
    stated = codec.parse_json(file.read_bytes())
    try:
        return codec.decode(kind, _swap_prefix(stated, _HERE, str(root)))
    except RecursionError as error:
        raise codec.CodecError("nested too deep") from error


def write_record(
    file: Path, record: Any, root: Path, moves: tuple[Path, Path] | None = None
) -> None:
    """Store a record; of paths below the first of `moves` the second is written."""
    stated = codec.encode(record)
    if moves:
        stated = _swap_prefix(stated, str(moves[0]), str(moves[1]))
    durable.write_bytes(file, json.dumps(_swap_prefix(stated, str(root), _HERE)).encode())


def _swap_prefix(value: Any, old: str, new: str) -> Any:
    """Replace a leading path in every string of a JSON value."""
    if isinstance(value, str):
        inside = value == old or value.startswith(old + "/")
        return new + value[len(old) :] if inside else value
    if isinstance(value, list):
        return [_swap_prefix(v, old, new) for v in value]
    if isinstance(value, dict):
        return {k: _swap_prefix(v, old, new) for k, v in value.items()}
    return value
