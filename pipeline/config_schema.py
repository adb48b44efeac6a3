"""The JSON schema of `mipkd.toml`, made from the settings' own classes.

A setting's meaning is the comment beside it, or above it, in its class. `mipkd-pipeline schema`
prints it; `docs/config.schema.json` is the same, and a test fails when it is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel

from pipeline.config import Config
from pipeline.report.schema import read_comments

_OURS = ("pipeline.", "mipkd.")  # modules whose classes hold settings


def config_schema() -> str:
    """The schema as JSON; editors that know TOML take it for completion and checks."""
    whole = Config.model_json_schema()
    classes = {one.__name__: one for one in _classes(Config)}
    for name, part in {Config.__name__: whole, **whole["$defs"]}.items():
        _describe(part, _comments(classes[name]))
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    whole |= {"title": "mipkd.toml"}
    return json.dumps(dialect | whole, indent=1) + "\n"


def _describe(part: dict[str, Any], comments: dict[str, str]) -> None:
    for name, facts in part["properties"].items():
        facts.pop("title", None)  # the name again
        if comments.get(name):
            facts["description"] = comments[name]


def _comments(section: type) -> dict[str, str]:
    """The comment of each setting, those of the sections that it extends too."""
    ours = (one for one in reversed(section.__mro__) if one.__module__.startswith(_OURS))
    return {name: text for one in ours for name, text in read_comments(one).items() if text}


def _classes(section: type) -> Iterator[type]:
    """A section's class and those that its settings are of; the device side's are dataclasses."""
    yield section
    for annotation in get_type_hints(section, include_extras=True).values():
        for kind in _flatten(annotation):
            is_class = isinstance(kind, type) and not get_args(kind)
            if is_class and (issubclass(kind, BaseModel) or is_dataclass(kind)):
                yield from _classes(kind)


def _flatten(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _flatten(inner)
