"""What TensorRT's Python bindings tell of the names that we call, and what we call them with.

    python tests/cases/tensorrt_signatures.py FOLDER... > tests/targets/tensorrt_api.json

reads the bindings of releases that cannot run here. They are small and on PyPI, their libraries are
not; each FOLDER is of `pip install --no-deps --only-binary :all: --target FOLDER
tensorrt-cu12-bindings==10.3.0`. The C compiler makes empty libraries for them: nothing is called,
only the signatures that pybind11 wrote into docstrings are read. Needs Linux and `cc`.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from targets._tensorrt import api

Told = Mapping[str, Sequence[str]]  # "Class.member" to its signatures; none for an attribute

# A class of the bindings and what it is called here.
_CLASSES = {
    name: name
    for name in (
        *("Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "ILogger", "Logger"),
        *("INetworkDefinition", "IOptimizationProfile", "ITensor", "ITimingCache", "OnnxParser"),
        *("ParserError", "Runtime"),
    )
}
_ENUMS = {
    "BuilderFlag": "Flags",
    "DeviceType": "Devices",
    "ExecutionContextAllocationStrategy": "Strategies",
    "TensorIOMode": "Modes",
}
_OF_RTX = {"IBuilderConfig": "RtxBuilderConfig"}
_SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((.*)\) -> (.+)$", re.MULTILINE)
_SAME = {"SupportsInt": "int", "Buffer": "bytes", "buffer": "bytes", "tuple": "Dims"}
_SAME |= {"IParserError": "ParserError"}  # its own name was not known yet when this was written
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def read(module: Any) -> dict[str, list[str]]:
    """What bindings tell of the members that we use; what they lack is left out."""
    found = {}
    for kind, _, name in called(rtx=True):
        if hasattr(module, kind) and hasattr(getattr(module, kind), name):
            member = getattr(getattr(module, kind), name)
            texts = _SIGNATURE.finditer(member.__doc__ or "") if callable(member) else ()
            found[f"{kind}.{name}"] = [re.sub(r"\w+\.\w+\.(?=[A-Z])", "", m[0]) for m in texts]
    return found


def called(*, rtx: bool = False) -> Iterator[tuple[str, type, str]]:
    """Each member that we use: its class in the bindings, the protocol here, its name."""
    pairs = [*_CLASSES.items(), *_ENUMS.items(), *(_OF_RTX.items() if rtx else ())]
    for kind, ours in pairs:
        protocol = getattr(api, ours)
        members = vars(protocol)
        functions = (
            name
            for name, member in members.items()
            if inspect.isfunction(member) and member.__module__ == api.__name__
        )
        for name in (*members.get("__annotations__", ()), *functions):
            yield kind, protocol, name


def mismatches(told: Told, *, rtx: bool = False) -> list[str]:
    """What we would call that is not there, or takes and gives something else."""
    wrong = []
    for kind, protocol, name in called(rtx=rtx):
        there, here = told.get(f"{kind}.{name}"), getattr(protocol, name, None)
        if there is None:
            wrong.append(f"no {kind}.{name}")
        elif inspect.isfunction(here) and not any(_accepts(text, here) for text in there):
            wrong.append(f"{kind}.{name}{inspect.signature(here)}: {'; '.join(there)}")
    return wrong


def _accepts(text: str, ours: Any) -> bool:
    """Whether a signature of theirs takes what we give, and gives what we take."""
    match = _SIGNATURE.match(text)
    assert match, text
    theirs = [part.partition(": ") for part in re.split(r", (?=\w+: )", match[1])]
    signature = inspect.signature(ours)
    mine = list(signature.parameters.values())
    kinds = [(name, _kind(kind)) for name, _, kind in theirs[1:]]
    needed = sum(" = " not in kind for _, _, kind in theirs[1:])
    given = [(one.name, _kind(one.annotation)) for one in mine[1:]]
    matches = all(
        name == known and kind in (wanted, "Enumerator")
        for (name, kind), (known, wanted) in zip(given, kinds, strict=False)
    )
    enough = needed <= len(given) <= len(kinds)
    gives = _kind(signature.return_annotation) in (_kind(match[2]), "Enumerator")
    return enough and matches and gives


def _kind(annotation: str) -> str:
    """A type without where it is defined, its container, None and default."""
    kind = annotation.partition(" = ")[0].partition(" | ")[0]
    name = re.split(r"[.:]+", re.sub(r"^[\w.]+\[(.*)\]$", r"\1", kind))[-1].strip("'")
    return _SAME.get(name, name)


def _read_unlinked(folder: Path) -> dict[str, Any]:
    """Version and members of the bindings in a folder, with empty libraries in NVIDIA's place."""
    with tempfile.TemporaryDirectory() as place:
        lacking: list[str] = []
        while True:
            ended = _start(folder, Path(place), lacking)
            symbol = re.search(r"undefined symbol: (\w+)", ended.stderr)
            if symbol is None:
                break
            lacking.append(symbol[1])
    if ended.returncode:
        sys.exit(ended.stderr)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _start(folder: Path, place: Path, symbols: Sequence[str]) -> subprocess.CompletedProcess[str]:
    text = "".join(f"int {name}(void) {{ return 0; }}\n" for name in symbols)
    (place / "empty.c").write_text(text or "int nothing;\n")
    for major in (10, 11):
        for name in _LIBRARIES:
            file = f"lib{name}.so.{major}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", file, "empty.c"]
            subprocess.run(command, cwd=place, check=True)
    paths = os.pathsep.join((str(folder), *sys.path))
    env = {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(place)}
    script = (
        "import json, tensorrt_bindings as trt; from tensorrt_signatures import read; "
        "print(json.dumps({'version': trt.__version__, 'members': read(trt)}))"
    )
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    releases = [_read_unlinked(Path(folder).resolve()) for folder in sys.argv[1:]]
    print(json.dumps({one["version"]: one["members"] for one in releases}, indent=1))
