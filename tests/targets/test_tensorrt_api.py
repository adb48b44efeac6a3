"""What we call of TensorRT is there, and takes what we give, in every release that we name.

Releases without a GPU or libraries here are read from tensorrt_api.json; how that is made stands in
tests/cases/tensorrt_signatures.py.
"""

from __future__ import annotations

import json
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorrt_signatures import called, mismatches, read

RELEASES = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())


@pytest.mark.parametrize("release", RELEASES)
def test_releases_of_jetpack_take_what_we_call(release: str) -> None:
    assert mismatches(RELEASES[release]) == []


def test_those_of_each_jetpack_that_the_docs_name_are_held_against() -> None:
    assert [tuple(map(int, one.split(".")[:2])) for one in RELEASES] == [(10, 3), (10, 16), (11, 4)]


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_lean", "tensorrt_rtx_bindings"])
def test_what_is_installed_takes_what_we_call(name: str) -> None:
    if not find_spec(name):
        pytest.skip(f"{name} is not installed; {', '.join(RELEASES)} are held against by text")
    module, rtx = import_module(name), name.startswith("tensorrt_rtx")
    told = read(module)
    absent = {kind for kind, _, _ in called() if not hasattr(module, kind)}
    assert absent == set() or name == "tensorrt_lean"  # which builds nothing
    wrong = mismatches(told, rtx=rtx)
    assert [one for one in wrong if not any(f"no {kind}." in one for kind in absent)] == []
    assert "Runtime.deserialize_cuda_engine" in told


@pytest.mark.parametrize(
    ("member", "signatures", "says"),
    [
        ("Runtime.DLA_core", None, "no Runtime.DLA_core"),
        ("Runtime.deserialize_cuda_engine", None, "no Runtime.deserialize_cuda_engine"),
        ("OnnxParser.parse", ["parse(self: OnnxParser, file: buffer) -> bool"], "OnnxParser.parse"),
        ("OnnxParser.parse", ["parse(self: OnnxParser, model: str) -> bool"], "OnnxParser.parse"),
        (
            "OnnxParser.parse",
            ["parse(self: OnnxParser, model: buffer) -> None"],
            "OnnxParser.parse",
        ),
        (
            "OnnxParser.parse",
            ["parse(self: OnnxParser, model: buffer, path: str) -> bool"],
            "OnnxParser.parse",
        ),
        ("Runtime.__init__", ["__init__(self: Runtime) -> None"], "Runtime.__init__"),
    ],
)
def test_a_call_that_changed_is_named(member: str, signatures: list[str] | None, says: str) -> None:
    told = deepcopy(RELEASES["10.3.0"])
    del told[member]
    if signatures is not None:
        told[member] = signatures
    (wrong,) = mismatches(told)
    assert wrong.startswith(says)
