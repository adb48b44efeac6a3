"""The pages on `results.json`: `results.schema.json` and `results-schema.md`.

`python -m pipeline.report.schema_pages docs` writes both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.report.schema import SCHEMA_VERSION, Results


def json_schema() -> str:
    """The JSON schema of `results.json`, as committed in `docs/results.schema.json`."""
    return json.dumps(Results.model_json_schema(), indent=2) + "\n"


def documentation() -> str:
    """The fields in words, as committed in `docs/results-schema.md`."""
    schema = Results.model_json_schema()
    parts = {"Results": schema, **schema["$defs"]}
    meanings = {name: part["description"] for name, part in parts.items()}
    return _INTRODUCTION + "".join(_table(name, part, meanings) for name, part in parts.items())


_INTRODUCTION = f"""# `results.json`

What a run found, for machines; version {SCHEMA_VERSION}. The formal description is
[results.schema.json](results.schema.json). Both pages are made from `pipeline/report/schema.py`
by `python -m pipeline.report.schema_pages docs`; a test fails when they are out of date.

Within a major version fields are only added: read what you know and leave the rest. Numbers are
never NaN or infinite; what is not known is `null`. Sizes are LR pixels, times milliseconds except
for raw samples, which are seconds.
"""


def _table(name: str, part: dict[str, Any], meanings: dict[str, str]) -> str:
    rows = "".join(
        f"| `{field}` | {_type(facts)} | {_meaning(facts, meanings)} |\n"
        for field, facts in part["properties"].items()
    )
    heading = f"\n## {name}\n\n{part['description']}\n\n"
    return heading + "| Field | Type | Meaning |\n|---|---|---|\n" + rows


def _meaning(facts: dict[str, Any], meanings: dict[str, str]) -> str:
    """A field's docstring; pydantic leaves it out where it equals that of the field's class."""
    return str(facts.get("description") or meanings[facts["$ref"].rpartition("/")[2]])


def _type(facts: dict[str, Any]) -> str:
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in facts:
        return " or ".join(_type(one) for one in facts["anyOf"])
    if "enum" in facts:
        return " or ".join(f'"{value}"' for value in facts["enum"])
    if facts["type"] == "array":
        return f"list of {_type(facts['items'])}"
    if facts["type"] == "object":
        return "object"
    return str(facts["type"])


def main(folder: Path) -> None:
    """Write schema and documentation into a folder."""
    (folder / "results.schema.json").write_text(json_schema())
    (folder / "results-schema.md").write_text(documentation())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
