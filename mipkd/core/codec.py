"""Records to plain JSON and back: dataclasses made of numbers, texts, tuples, dicts and paths.

Both sides use it, a device that has the standard library alone too. A number that is not finite is
written as null, since JSON has no other word, and a float that is null is read as NaN. A field's
range (`mipkd.core.ranges`) is kept, and NaN is in none. Fields that a record does not know are left
out, so that a newer file of the same version can be read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import stat
import types
from collections.abc import Callable, Iterable
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mipkd.core.errors import UsageError
from mipkd.core.ranges import Range

R = TypeVar("R")
_LARGEST = 2**63  # no whole number of ours comes near
_MOST_BYTES = 2**28  # of a JSON file: the largest of ours have a few MB


class CodecError(ValueError):
    """JSON that is not the record it should be; `place` leads to the value, such as "host.cpu"."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(f"{place}: {what}" if place else what)
        self.what, self.place = what, place


def encode(
    value: Any, root: Path | None = None, write_path: Callable[[PurePath], str] = str
) -> Any:
    """A record as JSON; paths below `root` are written from there, others by `write_path`."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, PurePath):
        inside = root is not None and value.is_relative_to(root)
        return value.relative_to(root or "").as_posix() if inside else write_path(value)
    if isinstance(value, dict):
        return {str(encode(n)): encode(one, root, write_path) for n, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(one, root, write_path) for one in value]
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"no record, and nothing that one is made of: {type(value).__name__}")
    names = (field.name for field in dataclasses.fields(value))
    return {name: encode(getattr(value, name), root, write_path) for name in names}


def decode(kind: type[R], stated: Any, root: Path | None = None) -> R:
    """The record of that kind; relative paths are of `root`.

    Raises:
        CodecError: it is none, says where and why.
    """
    try:
        record: R = _read(kind, stated, root or Path())
    except RecursionError as error:
        raise CodecError("nested too deep") from error
    return record


def parse_json(text: str | bytes) -> Any:
    """What JSON states.

    Raises:
        CodecError: it is none, nested too deep, names a field twice or holds no finite number.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_read_object,
            parse_float=_parse_finite,
            parse_constant=_parse_finite,
        )
    except RecursionError as error:
        raise CodecError("nested too deep") from error
    except ValueError as error:
        raise CodecError(str(error)) from error


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise CodecError("stated twice", next(n for n in names if names.count(n) > 1))
    return found


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise CodecError(f"no finite number: {_shorten(text)}")
    return number


def read_json(file: Path, *, what: str = "file", hint: str = "") -> Any:
    """What a JSON file holds; `what` it should be is said where it cannot be read.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return parse_json(_read_bytes(file))
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{file}: no {what}: {why}", hint=hint) from error
    except CodecError as error:
        raise UsageError(f"{file}: damaged: {error.what}", hint=hint) from error
    except ValueError as error:  # a name that no file can have
        raise UsageError(f"{file}: no {what}: {error}", hint=hint) from error


def _read_bytes(file: Path) -> bytes:
    facts = file.stat()
    if not stat.S_ISREG(facts.st_mode) and not file.is_dir():  # a pipe or a device may never end
        raise CodecError("no file, but a device or a pipe")
    if facts.st_size > _MOST_BYTES:
        raise CodecError(f"{facts.st_size} bytes, more than {_MOST_BYTES}")
    return file.read_bytes()


def decode_file(kind: type[R], stated: Any, file: Path, *, hint: str = "") -> R:
    """The record in a file, whose JSON was read.

    Raises:
        UsageError: it is none.
    """
    try:
        return decode(kind, stated)
    except CodecError as error:
        raise UsageError(f"{file}: damaged: {error}", hint=hint) from error


def _read(kind: Any, stated: Any, root: Path) -> Any:
    if kind is float:
        stated = math.nan if stated is None else stated
        return _read_float(stated)
    if kind is int:
        whole = isinstance(stated, int) and not isinstance(stated, bool)
        if abs(_check(whole, stated, "whole number")) >= _LARGEST:
            raise CodecError("a number too large")
        return stated
    if kind in (str, bool, type(None)):
        return _check(isinstance(stated, kind), stated, kind.__name__)
    if kind is Any:
        return stated
    return _read_parts(kind, stated, root)


def _read_float(stated: Any) -> float:
    number = isinstance(stated, (int, float)) and not isinstance(stated, bool)
    try:
        return float(_check(number, stated, "number"))
    except OverflowError as error:
        raise CodecError("a number too large") from error


def _read_parts(kind: Any, stated: Any, root: Path) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _read_ranged(arguments, stated, root)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, stated, root)
    if origin is Literal:
        return _check(stated in arguments, stated, f"one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        _check(isinstance(stated, (list, tuple)), stated, "list")
        return _read_tuple(arguments, stated, root)
    if origin is dict:
        _check(isinstance(stated, dict), stated, "object")
        return dict(_each(((name, arguments[1], one) for name, one in stated.items()), root))
    if dataclasses.is_dataclass(kind):
        return _read_record(kind, _check(isinstance(stated, dict), stated, _name(kind)), root)
    if issubclass(kind, Enum):
        known = [member.value for member in kind]
        return kind(_check(stated in known, stated, f"one of {', '.join(map(str, known))}"))
    return root / _check(isinstance(stated, str) and "\0" not in stated, stated, "path")


def _read_ranged(kinds: tuple[Any, ...], stated: Any, root: Path) -> Any:
    value = _read(kinds[0], stated, root)
    for allowed in (one for one in kinds[1:] if isinstance(one, Range)):
        if not allowed.holds(value):
            raise CodecError(f"{_shorten(repr(stated))} is not {allowed}")
    return value


def _read_union(kinds: tuple[Any, ...], stated: Any, root: Path) -> Any:
    """Null stays null where it may; else the first kind that fits."""
    if stated is None and type(None) in kinds:
        return None
    problem = CodecError("fits nothing")
    for kind in kinds:
        try:
            return _read(kind, stated, root)
        except CodecError as error:
            problem = error if kind is not type(None) else problem
    raise problem


def _read_tuple(kinds: tuple[Any, ...], stated: Any, root: Path) -> tuple[Any, ...]:
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(stated)
    if len(kinds) != len(stated):
        raise CodecError(f"{len(stated)} values, not {len(kinds)}")
    triples = ((n, kind, one) for n, (kind, one) in enumerate(zip(kinds, stated, strict=True)))
    return tuple(one for _, one in _each(triples, root))


def _read_record(kind: Any, stated: dict[str, Any], root: Path) -> Any:
    hints, needed, as_now = _facts(kind)
    try:
        stated = as_now(stated) if as_now else stated
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CodecError(f"no {_name(kind)} of an older version: {error}") from error
    for name in needed:
        if name not in stated:
            raise CodecError("missing", name)
    known = ((name, hint, stated[name]) for name, hint in hints.items() if name in stated)
    fields = dict(_each(known, root))
    try:
        return kind(**fields)
    except ValueError as error:  # of its own checks
        raise CodecError(str(error)) from error


@cache
def _facts(kind: Any) -> tuple[dict[str, Any], list[str], Callable[[Any], Any] | None]:
    """A record's fields and their kinds, those without a default, and how older JSON reads now."""
    hints, fields = get_type_hints(kind, include_extras=True), dataclasses.fields(kind)
    needed = [
        field.name
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    return {f.name: hints[f.name] for f in fields}, needed, getattr(kind, "as_now", None)


def _each(triples: Iterable[tuple[Any, Any, Any]], root: Path) -> Iterable[tuple[Any, Any]]:
    """Name and value of each; an error tells the name."""
    for name, kind, stated in triples:
        try:
            yield name, _read(kind, stated, root)
        except CodecError as error:
            raise CodecError(error.what, f"{name}.{error.place}".rstrip(".")) from error


def _check(well: bool, stated: Any, kind: str) -> Any:
    if not well:
        raise CodecError(f"no {kind}: {_shorten(repr(stated))}")
    return stated


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _name(kind: Any) -> str:
    return str(kind.__name__)
