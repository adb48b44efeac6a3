"""Files beside an ONNX graph that it reads weights from, seen without the package `onnx`.

A device has none, and a runtime that is given a graph opens whatever path its tensors name.
Source of the field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from mipkd.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Message -> field -> message in it, of all that leads to a tensor.
_WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
# Kinds of fields. A group's begin and end are skipped, so that what is in it is looked at too.
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)


def refuse_outside_files(file: Path) -> None:
    """Refuse a graph that reads a file which is not one beside it.

    Raises:
        UsageError: it does.
    """
    try:
        named = sorted(set(_locations(memoryview(file.read_bytes()))))
    except (IndexError, ValueError):
        return  # no protobuf: no runtime opens it, and that says why
    for name in named:
        plain = PurePosixPath(name).name == PureWindowsPath(name).name == name
        beside = file.parent / name
        if not plain or beside.is_symlink() or not beside.is_file():
            raise UsageError(
                f"{file}: reads its weights from {name!r}, which is no file beside it",
                hint="do not trust it; weights belong into the graph's own file",
            )


def _locations(model: memoryview) -> Iterator[str]:
    """Each file that a tensor names."""
    left = [("model", model)]
    while left:
        kind, message = left.pop()
        parts = list(_fields(message))
        if kind == "entry":
            facts = {number: bytes(part) for number, part in parts}
            if facts.get(1) == b"location":
                yield facts.get(2, b"").decode(errors="surrogateescape")
        within = _WITHIN.get(kind, {})
        left += [(within[number], part) for number, part in parts if number in within]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each field that has a length."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _BYTES:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise ValueError("a field is longer than what holds it")
            yield tag >> 3, message[at : at + length]
            at += length
        elif wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire not in (_GROUP, _GROUP_END):
            raise ValueError(f"a field of kind {wire}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
