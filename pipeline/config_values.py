"""Settings as people type them: `--set NAME=VALUE`, layer over layer, and what is wrong with them.

Needs no torch: `check` runs where there is none.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import tomllib
from pydantic import BaseModel, ValidationError

from mipkd.core.errors import UsageError


def assignments(sets: Sequence[str]) -> dict[str, Any]:
    """`distill.lr=2e-4` as nested settings; a value that is not TOML is a string."""
    found: dict[str, Any] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set: {text!r} is not NAME=VALUE", hint="--set distill.lr=2e-4")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            parsed = value
        nested: Any = parsed
        for part in reversed(name.strip().split(".")):
            nested = {part: nested}
        found = merge_settings(found, nested)
    return found


def merge_settings(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over others, section by section; None leaves what lies under it."""
    found = dict(under)
    for name, value in over.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            old = found.get(name)
            value = merge_settings(old if isinstance(old, Mapping) else {}, value)
        found[name] = value
    return found


def as_usage_error(error: ValidationError, config: type[BaseModel]) -> UsageError:
    """What is wrong with settings of `config`, with the nearest names."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    name = ".".join(place)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known(config, place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1)
        hint = (f"did you mean {close[0]}? " if close else "") + "known: " + ", ".join(known)
        return UsageError(f"config: {name}: unknown setting", hint=hint)
    what, _, hint = first["msg"].removeprefix("Value error, ").partition("; ")
    of = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return UsageError(f"config: {name}: {what}{of}", hint=hint)


def _known(config: type[BaseModel], place: Sequence[str]) -> list[str]:
    at: Any = config
    for part in place:
        fields = getattr(at, "model_fields", None)
        if not fields or part not in fields:
            return []
        at = fields[part].annotation
    fields = getattr(at, "model_fields", None) or getattr(at, "__dataclass_fields__", {})
    return sorted(fields)
