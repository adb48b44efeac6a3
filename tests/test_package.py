"""The wheel holds all that the program needs, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pipeline", "mipkd", "targets", "calibration")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from a copy of the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ROOMS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(tree)], check=True)
    (file,) = out.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        return archive.namelist()


def test_every_module_and_data_file_is_in_the_wheel(wheel: list[str]) -> None:
    files = [f for room in ROOMS for f in (ROOT / room).rglob("*") if f.is_file()]
    wanted = {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}
    assert wanted - set(wheel) == set()
    assert "pipeline/presets/demo.toml" in wheel


def test_nothing_else_is_in_the_wheel(wheel: list[str]) -> None:
    rooms = {name.split("/")[0] for name in wheel}
    assert {r for r in rooms if not r.endswith(".dist-info")} == set(ROOMS)
