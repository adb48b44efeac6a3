"""The container's recipe, which no test can build: its style, its layers and its rights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pipeline", "mipkd", "targets", "calibration")
STAGES = ("check", "full")


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, those that go on over lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in filter(None, re.sub(r"\\\n\s*", "", text).splitlines()):
        if begins := re.match(r"FROM \S+ AS (\S+)", line):
            found[begins[1]] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.is_file():
        pytest.skip("needs hadolint, of the extra `dev`")
    ended = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_packages_come_before_the_sources_and_nobody_runs_as_root(stage: str) -> None:
    lines = stages()[stage]
    copied = [lines.index(f"COPY {room} {room}") for room in SOURCES]
    installed = [at for at, line in enumerate(lines) if "pip install" in line]
    assert min(copied) > installed[0], "a change of the sources would install all packages anew"
    assert installed[1:] == [max(copied) + 1]
    assert "--no-deps" in lines[installed[1]]
    assert lines.index("USER 10001") > installed[-1]


def test_one_image_has_no_torch_and_the_other_that_of_the_cpu() -> None:
    check, full = (" ".join(stages()[stage]) for stage in STAGES)
    assert "torch" not in check
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu" in full
    assert list(stages()) == ["base", *STAGES], "the last one is built where none is named"


def test_what_is_copied_is_all_that_is_sent_to_the_builder() -> None:
    lines = [line for stage in stages().values() for line in stage if line.startswith("COPY ")]
    copied = {name for line in lines for name in line.split()[1:-1]}
    ignore = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x[0] != "#"]
    assert ignore[0] == "*"
    assert {line[1:] for line in ignore if line[0] == "!"} == copied
    assert all((ROOT / name).exists() for name in copied)
