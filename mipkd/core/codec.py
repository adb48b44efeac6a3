"""Records to plain JSON and back: dataclasses made of numbers, texts, tuples, dicts and paths.

Both sides use it, a device that has the standard library alone too. A number that is not finite is
written as null, since JSON has no other word, and a float that is null is read as NaN. Fields that
a record does not know are left out, so that a newer file of the same version can be read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mipkd.core.errors import UsageError

R = TypeVar("R")
Reader = Callable[[Any, Path], Any]


class CodecError(ValueError):
    """JSON that is not the record it should be; `place` leads to the value, such as "host.cpu"."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(f"{place or 'whole file'}: {what}")
        self.what, self.place = what, place

    def inside(self, name: str | int) -> CodecError:
        """The same, seen from the record or list around it."""
        return CodecError(self.what, f"{name}.{self.place}".rstrip("."))


def encode(value: Any, root: Path | None = None) -> Any:
    """A record as JSON; paths below `root` are written from there."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value
    if isinstance(value, PurePath):
        inside = root is not None and value.is_relative_to(root)
        return value.relative_to(root or "").as_posix() if inside else str(value)
    if isinstance(value, dict):
        return {str(encode(name)): encode(one, root) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(one, root) for one in value]
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"no record, and nothing that one is made of: {type(value).__name__}")
    names = (field.name for field in dataclasses.fields(value))
    return {name: encode(getattr(value, name), root) for name in names}


def decode(kind: type[R], stated: Any, root: Path | None = None) -> R:
    """The record of that kind; relative paths are of `root`.

    Raises:
        CodecError: it is none, says where and why.
    """
    reader: Reader = _reader(cast(Hashable, kind))
    record: R = reader(stated, root or Path())
    return record


def read_json(file: Path, *, what: str = "file", hint: str = "") -> Any:
    """What a JSON file holds; `what` it should be is said where it cannot be read.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"{file}: no {what}: {why}", hint=hint) from error
    except ValueError as error:
        raise UsageError(f"{file}: damaged: {error}", hint=hint) from error


def decode_file(kind: type[R], stated: Any, file: Path, *, hint: str = "") -> R:
    """The record in a file, whose JSON was read.

    Raises:
        UsageError: it is none.
    """
    try:
        return decode(kind, stated)
    except CodecError as error:
        raise UsageError(f"{file}: damaged: {error}", hint=hint) from error


@cache
def _reader(kind: Any) -> Reader:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda stated, root: stated
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is Literal:
        return _one_of(arguments, lambda stated: stated)
    if origin is tuple:
        return _tuple(arguments)
    if origin is dict:
        return _mapping(*arguments)
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _one_of([member.value for member in kind], kind)
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return lambda stated, root: root / _text(stated, root)
    return _PLAIN[kind]


def _text(stated: Any, root: Path) -> str:
    if not isinstance(stated, str):
        raise CodecError(f"no text: {_shown(stated)}")
    return stated


def _whole(stated: Any, root: Path) -> int:
    if not isinstance(stated, int) or isinstance(stated, bool):
        raise CodecError(f"no whole number: {_shown(stated)}")
    return stated


def _number(stated: Any, root: Path) -> float:
    if stated is None:
        return math.nan
    if not isinstance(stated, (int, float)) or isinstance(stated, bool):
        raise CodecError(f"no number: {_shown(stated)}")
    return float(stated)


def _truth(stated: Any, root: Path) -> bool:
    if not isinstance(stated, bool):
        raise CodecError(f"neither true nor false: {_shown(stated)}")
    return stated


def _nothing(stated: Any, root: Path) -> None:
    if stated is not None:
        raise CodecError(f"not null: {_shown(stated)}")


_PLAIN: dict[Any, Reader] = {
    str: _text,
    int: _whole,
    float: _number,
    bool: _truth,
    type(None): _nothing,
}


def _union(kinds: Iterable[Any]) -> Reader:
    """Null before any number, so that it stays null; then the first kind that fits."""
    readers = [_reader(kind) for kind in sorted(kinds, key=lambda kind: kind is not type(None))]

    def read(stated: Any, root: Path) -> Any:
        for reader in readers:
            try:
                return reader(stated, root)
            except CodecError as error:
                last = error
        raise last

    return read


def _one_of(known: Iterable[Any], make: Callable[[Any], Any]) -> Reader:
    known = tuple(known)

    def read(stated: Any, root: Path) -> Any:
        if stated not in known:
            raise CodecError(f"{_shown(stated)} is none of {', '.join(map(str, known))}")
        return make(stated)

    return read


def _tuple(kinds: tuple[Any, ...]) -> Reader:
    alike = len(kinds) == 2 and kinds[1] is Ellipsis
    readers = [_reader(kind) for kind in (kinds[:1] if alike else kinds)]

    def read(stated: Any, root: Path) -> Any:
        if not isinstance(stated, (list, tuple)):
            raise CodecError(f"no list: {_shown(stated)}")
        if not alike and len(stated) != len(readers):
            raise CodecError(f"{len(stated)} values, not {len(readers)}")
        each = readers * len(stated) if alike else readers
        found = []
        for number, (reader, one) in enumerate(zip(each, stated, strict=True)):
            try:
                found.append(reader(one, root))
            except CodecError as error:
                raise error.inside(number) from error
        return tuple(found)

    return read


def _mapping(name_kind: Any, kind: Any) -> Reader:
    names, values = _reader(name_kind), _reader(kind)

    def read(stated: Any, root: Path) -> Any:
        if not isinstance(stated, dict):
            raise CodecError(f"no object: {_shown(stated)}")
        found = {}
        for name, one in stated.items():
            try:
                found[names(name, root)] = values(one, root)
            except CodecError as error:
                raise error.inside(name) from error
        return found

    return read


def _record(kind: Any) -> Reader:
    hints = get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    # A record whose fields have changed may say how its older JSON reads.
    as_now: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(kind, "as_now", None)

    def read(stated: Any, root: Path) -> Any:
        if not isinstance(stated, dict):
            raise CodecError(f"no {kind.__name__}: {_shown(stated)}")
        stated = as_now(stated) if as_now else stated
        found = {}
        for field in fields:
            if field.name in stated:
                try:
                    found[field.name] = _reader(hints[field.name])(stated[field.name], root)
                except CodecError as error:
                    raise error.inside(field.name) from error
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise CodecError("missing", field.name)
        return kind(**found)

    return read


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
