"""The JSON schema of `results.json` and its page in words, both made from the records.

A field's meaning is the comment beside it, or above it, in the record's source.
`python -m pipeline.report.schema docs` writes `results.schema.json` and `results-schema.md`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import math
import sys
import textwrap
import tokenize
import types
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mipkd.core.evidence import Evidence
from mipkd.core.ranges import Range
from pipeline.report.figures import Figures
from pipeline.report.results_file import SCHEMA_VERSION

Schema = dict[str, Any]

_INTRODUCTION = f"""# `results.json`

What a run found, for machines; version {SCHEMA_VERSION}. The formal description is
[results.schema.json](results.schema.json). Both pages are made from the records of the program by
`python -m pipeline.report.schema docs`; a test fails when they are out of date.
[What changed from 1.x](results-2.md).

Within a major version fields are only added: read what you know and leave the rest. A number that
is not known or not finite is `null`. Sizes are LR pixels, height first; raw samples are seconds.
Paths are from the run's folder. What stands under `figures` is computed from all the rest.
"""
_PLAIN = {str: "string", int: "integer", bool: "boolean", type(None): "null"}


def json_schema() -> str:
    """The JSON schema of `results.json`, as committed in `docs/results.schema.json`."""
    return json.dumps(_whole(), indent=1) + "\n"


def documentation() -> str:
    """The fields in words, as committed in `docs/results-schema.md`."""
    whole = _whole()
    parts = {"Results": whole, **whole["$defs"]}
    return _INTRODUCTION + "".join(_table(name, part) for name, part in parts.items())


def _whole() -> Schema:
    parts: dict[str, Schema] = {}
    _refer(Evidence, parts)
    _refer(Figures, parts)
    evidence = parts.pop("Evidence")
    version = {"type": "string", "description": "Version of this format: major.minor."}
    figures = {**_refer(Figures, parts), "description": "Computed from all the rest."}
    properties = {"schema_version": version, **evidence["properties"], "figures": figures}
    return {
        "description": evidence["description"],
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "$defs": parts,
    }


def _refer(record: Any, parts: dict[str, Schema]) -> Schema:
    """A reference to a record's part, which is added to `parts` with those that it needs."""
    if record.__name__ not in parts:
        part = parts[record.__name__] = {"description": _sentence(record), "type": "object"}
        hints = get_type_hints(record, include_extras=True)
        meanings = read_comments(record)
        names = [field.name for field in dataclasses.fields(record)]
        part["properties"] = {
            name: {**_type(hints[name], parts), "description": meanings.get(name, "")}
            for name in names
        }
        part["required"] = names
    return {"$ref": f"#/$defs/{record.__name__}"}


def _type(kind: Any, parts: dict[str, Schema]) -> Schema:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if origin is Annotated:
        return _ranged(*arguments)
    if kind is float:
        return {"type": ["number", "null"]}
    if dataclasses.is_dataclass(kind):
        return _refer(kind, parts)
    if origin in (Union, types.UnionType):
        kinds = [one for one in arguments if one is not type(None) or float not in arguments]
        each = [_type(one, parts) for one in kinds]
        return {"anyOf": each} if len(each) > 1 else each[0]
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is not Ellipsis:
        each = [_type(one, parts) for one in arguments]
        return {"type": "array", "items": each[0], "minItems": len(each), "maxItems": len(each)}
    if origin is tuple:
        return {"type": "array", "items": _type(arguments[0], parts)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(arguments[1], parts)}
    if issubclass(kind, Enum):
        return {"enum": [one.value for one in kind]}
    return {"type": "string" if issubclass(kind, PurePath) else _PLAIN[kind]}


def _ranged(kind: type, allowed: Range) -> Schema:
    """A number that is known: JSON schema's words for its range."""
    bounds = {
        "minimum": allowed.least,
        "maximum": allowed.most,
        "exclusiveMinimum": allowed.above,
    }
    finite = {word: bound for word, bound in bounds.items() if math.isfinite(bound)}
    return {"type": "number" if kind is float else _PLAIN[kind], **finite}


def _sentence(record: type) -> str:
    """The first paragraph of a record's docstring."""
    return " ".join((inspect.getdoc(record) or "").partition("\n\n")[0].split())


def read_comments(record: type) -> dict[str, str]:
    """The comment of each field, those of the records that it extends too."""
    bases = record.__bases__ if dataclasses.is_dataclass(record.__bases__[0]) else ()
    found = {name: text for base in bases for name, text in read_comments(base).items()}
    source = textwrap.dedent(inspect.getsource(record))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    lines = source.splitlines()
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            words = [comments[n] for n in range(first, (node.end_lineno or 0) + 1) if n in comments]
            found[node.target.id] = " ".join(words)
    return found


def _table(name: str, part: Schema) -> str:
    rows = "".join(
        f"| `{field}` | {_in_words(facts)} | {facts['description']} |\n"
        for field, facts in part["properties"].items()
    )
    heading = f"\n## {name}\n\n{part['description']}\n\n"
    return heading + "| Field | Type | Meaning |\n|---|---|---|\n" + rows


def _in_words(facts: Schema) -> str:
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in facts:
        return " or ".join(dict.fromkeys(_in_words(one) for one in facts["anyOf"]))
    if "enum" in facts:
        return " or ".join(f'"{value}"' for value in facts["enum"])
    kind = facts.get("type", "any")
    if kind == "array":
        count = f"{facts['maxItems']} " if "maxItems" in facts else ""
        return f"list of {count}{_in_words(facts['items'])}"
    if kind == "object":
        return f"object of {_in_words(facts['additionalProperties'])}"
    return "number or null" if isinstance(kind, list) else str(kind)


def main(folder: Path) -> None:
    """Write schema and documentation into a folder."""
    (folder / "results.schema.json").write_text(json_schema())
    (folder / "results-schema.md").write_text(documentation())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
