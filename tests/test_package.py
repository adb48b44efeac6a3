"""The wheel holds all that the program needs, and asks for it, and for nothing else."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pipeline", "mipkd", "targets", "calibration")


@dataclass(frozen=True)
class Wheel:
    """The names in a wheel, and what it says of itself to pip and to an index."""

    names: list[str]
    metadata: Message

    def asks_for(self, extra: str = "") -> set[str]:
        """The packages that are installed with it, and theirs, as far as they are here."""
        asked = map(Requirement, self.metadata.get_all("Requires-Dist", []))
        return closure([one for one in asked if applies(one, ["", extra])])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """A wheel built from a copy of the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ROOMS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "PACKAGE.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(tree)], check=True)
    (file,) = out.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (told,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return Wheel(names, message_from_bytes(archive.read(told)))


def test_every_module_and_data_file_is_in_the_wheel(wheel: Wheel) -> None:
    files = [f for room in ROOMS for f in (ROOT / room).rglob("*") if f.is_file()]
    wanted = {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}
    assert wanted - set(wheel.names) == set()
    assert "pipeline/presets/demo.toml" in wheel.names
    assert "mipkd/samples/test/canyon-wren.webp" in wheel.names


def test_nothing_else_is_in_the_wheel(wheel: Wheel) -> None:
    rooms = {name.split("/")[0] for name in wheel.names}
    assert {r for r in rooms if not r.endswith(".dist-info")} == set(ROOMS)


def test_what_an_index_shows_has_no_link_that_needs_the_repository(wheel: Wheel) -> None:
    shown = str(wheel.metadata.get_payload())
    assert shown == (ROOT / "PACKAGE.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)|^\[[^\]]*\]: (\S+)", shown, re.MULTILINE)
    links += [url.split(", ")[1:] for url in wheel.metadata.get_all("Project-URL", [])]
    assert all(one.startswith("https://") for found in links for one in found if one)


def test_readers_learn_of_every_extra(wheel: Wheel) -> None:
    extras = set(wheel.metadata.get_all("Provides-Extra", [])) - {"dev", "docs"}
    shown = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert extras <= set(shown)
    told = set(re.findall(r"`([\w-]+)`", (ROOT / "PACKAGE.md").read_text()))
    assert extras <= told


def test_a_plain_install_brings_no_tools_of_others_trades(wheel: Wheel) -> None:
    core = wheel.asks_for()
    assert {"torch", "onnxruntime", "pillow"} <= core
    assert core.isdisjoint({"scikit-learn", "scikit-image", "tensorboard", "openvino", "nncf"})
    assert "tensorboard" in wheel.asks_for("train")


def test_nothing_that_is_imported_at_once_comes_with_an_extra_alone(wheel: Wheel) -> None:
    core = wheel.asks_for()
    strangers = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in sources()
        for name in imported(ast.parse(file.read_text()).body)
        if core.isdisjoint(distributions(name))
    }
    assert not strangers


# What some commands use where it is, and do without elsewhere: each says so itself.
WELCOME = {"psutil", "modelopt"}


def test_whatever_is_imported_later_comes_with_an_extra(wheel: Wheel) -> None:
    extras = wheel.metadata.get_all("Provides-Extra", [])
    named = {
        canonicalize_name(Requirement(r).name) for r in wheel.metadata.get_all("Requires-Dist")
    }
    known = set.union(named, *(wheel.asks_for(extra) for extra in extras))
    strangers = {
        name
        for file in sources()
        for name in imported(ast.walk(ast.parse(file.read_text())))
        if known.isdisjoint(distributions(name))
    }
    assert strangers <= WELCOME


def sources() -> Iterator[Path]:
    return (file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


def imported(nodes: Iterator[ast.AST] | Sequence[ast.AST]) -> Iterator[str]:
    """The packages of others that statements import."""
    names = set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return (name for name in names if name not in (*sys.stdlib_module_names, *ROOMS))


modules = cache(packages_distributions)


def distributions(name: str) -> set[str]:
    """The packages that a module comes from; what is not here is called like its module."""
    return {canonicalize_name(one) for one in modules().get(name, [name])}


def closure(asked: Sequence[Requirement]) -> set[str]:
    """Names of the packages asked for and of all that they ask for."""
    found, left = set[str](), [(one, *one.extras) for one in asked]
    while left:
        one, *extras = left.pop()
        name = canonicalize_name(one.name)
        if name in found and not extras:
            continue
        found.add(name)
        try:
            more = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
        left += [(r, *r.extras) for r in more if applies(r, ["", *extras])]
    return found


def applies(one: Requirement, extras: Sequence[str]) -> bool:
    return one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras)
