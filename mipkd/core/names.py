"""Names of files as people and other systems have them: safe to print, safe to write.

A file name on Linux is bytes: what is no UTF-8 reaches Python as lone surrogates, which neither a
terminal nor a JSON reader takes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

_LONGEST = 120  # bytes of UTF-8: file systems allow 255, and suffixes and folders are to come
_RESERVED = '<>:"|?*\\/%'  # what Windows does not take, and our own escape
# Kinds of characters that steer a terminal, break or turn a line, or are not seen at all: controls,
# formats, lone surrogates, separators of lines and paragraphs. Of the formats, scripts need three.
_ODD = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_WRITTEN = frozenset("\u00ad\u200c\u200d")
BUNDLE = "bundle"  # a run's folder of what is passed on
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # of Windows


def printable(text: str | PurePath, *, keep: str = "") -> str:
    r"""Text from outside as it can be shown: `\xe9` for a byte that is no UTF-8, `\n` for a line.

    Whatever comes from a file, a device or a library goes through here before it reaches a
    terminal, a log or a page; `keep` is what stays as it is, such as line ends.
    """
    return "".join(_escape(one) if _is_odd(one) and one not in keep else one for one in str(text))


def name_of_model(target: str, precision: str) -> str:
    """Such as `openvino-int8`, a name that every file system takes."""
    return f"{target}-{precision}".replace(":", "-")


def model_folder(target: str, precision: str) -> str:
    """Where a bundle has a model's files."""
    return f"model/{name_of_model(target, precision)}"


def why_unsafe(path: str) -> str:
    """Why a path with slashes may not be laid below a folder on every system; "" if it may."""
    parts = path.split("/")
    if "\\" in path or ".." in parts or not parts[0] or re.match("[A-Za-z]:", path):
        return "leads out of it"
    for part in parts:
        if part in ("", ".") or part[-1] in " ." or _DEVICES.match(part):
            return "is no name that every system takes"
        if any(_is_odd(one) or one in _RESERVED.replace("%", "") for one in part):
            return "is no name that every system takes"
    return ""


def find_twins(paths: Iterable[str]) -> tuple[str, str] | None:
    """Two that are one on a system that knows no case, and one form of an accent."""
    seen: dict[str, str] = {}
    for path in paths:
        if (other := seen.setdefault(_folded(path), path)) != path:
            return other, path
    return None


def unique_names(files: Sequence[PurePath]) -> list[str]:
    """For each relative path a name that no other has, as a file's name without a suffix.

    The stem where it is alone, else the name; folders before it, joined by "__".
    """
    stems = [_as_file_name(file.with_suffix("")) for file in files]
    count = Counter(map(_folded, stems))
    names, taken = [], set[str]()
    for file, stem in zip(files, stems, strict=True):
        wanted = stem if count[_folded(stem)] == 1 else _as_file_name(file)
        name, number = wanted, 1
        while _folded(name) in taken:
            number += 1
            name = f"{wanted}~{number}"
        taken.add(_folded(name))
        names.append(name)
    return names


def _as_file_name(file: PurePath) -> str:
    name = "__".join(file.parts)
    safe = "".join(_percent(c) if _is_odd(c) or c in _RESERVED else c for c in name)
    safe = "_" + safe[1:] if safe.startswith(".") else safe
    safe = f"_{safe}" if _DEVICES.match(safe) else safe
    if len(safe.encode()) <= _LONGEST:
        return safe
    sum_of_all = hashlib.sha256(safe.encode()).hexdigest()[:8]
    return safe.encode()[: _LONGEST - 9].decode(errors="ignore") + "~" + sum_of_all


def _folded(name: str) -> str:
    """What file systems that know no case and one form of an accent take it for."""
    return unicodedata.normalize("NFC", name).casefold()


def _is_odd(one: str) -> bool:
    return unicodedata.category(one) in _ODD and one not in _WRITTEN


def _escape(one: str) -> str:
    byte = _undecoded_byte(one)
    return one.encode("unicode_escape").decode() if byte is None else f"\\x{byte:02x}"


def _percent(one: str) -> str:
    byte = _undecoded_byte(one)
    encoded = one.encode("utf-8", "surrogatepass") if byte is None else bytes([byte])
    return "".join(f"%{value:02X}" for value in encoded)


def _undecoded_byte(one: str) -> int | None:
    """The byte of a file name that a lone surrogate stands for."""
    return ord(one) - 0xDC00 if "\udc80" <= one <= "\udcff" else None
