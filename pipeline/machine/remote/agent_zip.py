"""The device's side of this program as one file that a bare Python runs.

The same source gives the same bytes, so that a device keeps the file under its hash.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

# Folders of a package: every file in them travels, from wherever the package's path leads.
_WHOLE = ("pipeline.bench", "pipeline.machine", "targets", "calibration", "mipkd.core")
_OUTER = ("pipeline", "mipkd")  # only their own `__init__.py`

_MAIN = '''\
"""Starts the program where it can run; this file is one that old Pythons read too."""
import sys


def stop(what, hint):
    sys.stderr.write("error: " + what + "\\nhint: " + hint + "\\n")
    sys.exit(4)


if sys.version_info < (3, 10):
    found = "%d.%d.%d" % tuple(sys.version_info[:3])
    stop("needs Python 3.10 or later, this is " + found, "start it with another python3")
try:
    import numpy
except ImportError:
    stop("needs numpy, which this Python lacks", sys.executable + " -m pip install numpy")
from MODULE import main

sys.exit(main(sys.argv[1:]))
'''


def agent_bytes(
    *, more: Mapping[str, bytes] | None = None, main: str = "pipeline.machine.remote.agent"
) -> bytes:
    """The program: a zip with a `__main__.py`, for `python3 FILE ARGUMENTS`.

    `main` names the module whose `main(arguments)` is started, and `more` files that go along.
    """
    files = dict(_sources())
    files["__main__.py"] = _MAIN.replace("MODULE", main).encode()
    files |= more or {}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])
    return packed.getvalue()


def _sources() -> Iterator[tuple[str, bytes]]:
    """Name in the program, content; of two of one name the first on the package's path."""
    for package in _OUTER:
        yield f"{package}/__init__.py", _file_of(package).read_bytes()
    for package in _WHOLE:
        inside = package.replace(".", "/")
        for folder in reversed(importlib.import_module(package).__path__):
            for file in sorted(Path(folder).rglob("*.py")):
                yield f"{inside}/{file.relative_to(folder).as_posix()}", file.read_bytes()


def _file_of(package: str) -> Path:
    file = importlib.import_module(package).__file__
    assert file is not None, f"{package} has no __init__.py"
    return Path(file)
