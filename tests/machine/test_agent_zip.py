"""The device's program is one file: the same bytes each time, plug-ins of others in it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.machine.remote.agent_zip import agent_bytes


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The program as a file."""
    file = tmp_path / "program.pyz"
    file.write_bytes(agent_bytes())
    return file


def test_the_same_source_gives_the_same_bytes(program: Path) -> None:
    assert agent_bytes() == program.read_bytes()
    other = agent_bytes(more={"data/job.json": b"{}"})
    assert zipfile.ZipFile(io.BytesIO(other)).read("data/job.json") == b"{}"


def probed(command: list[str], folder: Path) -> dict[str, str]:
    """Why each target that it tells of cannot run, while its stdin is open."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        found = json.loads(process.stdout.read())["targets"]
    return {name: info["why_not"] for name, info in found.items()}


def test_it_probes_on_its_own(program: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", str(program), "probe", "null", "cpu"]
    assert probed(command, tmp_path) == {"null": "", "cpu": ""}
    names = zipfile.ZipFile(program).namelist()
    assert "targets/_tensorrt/engine.py" in names
    rooms = ("pipeline/stages", "pipeline/report", "mipkd/distill", "mipkd/archs")
    assert not [n for n in names if n.startswith(rooms)]


def test_a_target_of_another_package_goes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import targets

    theirs = tmp_path / "site" / "targets"
    theirs.mkdir(parents=True)
    (theirs / "theirs.py").write_text("from targets.null import TARGET\n")
    (theirs / "null.py").write_text("raise SystemExit('ours comes first')\n")
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(theirs)])
    (theirs / "broken.py").write_text("import nothing_of_that_name\n")
    program = tmp_path / "program.pyz"
    program.write_bytes(agent_bytes())
    command = [sys.executable, "-I", str(program), "probe", "theirs", "null", "broken"]
    why = probed(command, tmp_path)
    assert why["theirs"] == why["null"] == ""
    assert "nothing_of_that_name" in why["broken"]


def old_python() -> str:
    for name in ("2.7.18", "3.6.15", "3.8.18", "3.9.18"):
        if (found := Path.home() / ".pyenv/versions" / name / "bin/python").is_file():
            return str(found)
    return next(filter(None, map(shutil.which, ("python2", "python3.8", "python3.9"))), "")


def test_an_old_python_is_told_what_it_lacks(program: Path) -> None:
    if not (python := old_python()):
        pytest.skip("needs a Python older than 3.10")
    done = subprocess.run([python, str(program)], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.startswith("error: needs Python 3.10 or later, this is ")


def test_a_python_without_numpy_is_told_so(program: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(program), "probe"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 4
    assert "needs numpy, which this Python lacks" in done.stderr
