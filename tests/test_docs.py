"""Every command in README and docs is one that the program takes, its settings are ones it has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from pipeline import cli
from pipeline.config import load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = "mipkd-pipeline"


def code(page: Path) -> Iterator[str]:
    """Lines of code, those that go on below joined."""
    fenced, held = False, ""
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            held += line.strip()
            if held.endswith("\\"):
                held = held[:-1]
                continue
            yield held
            held = ""


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for line in code(page):
            if match := re.match(rf"(?:torchrun .*?)?\b{PROGRAM} (\w+ .*|\w+$)", line):
                words = shlex.split(match[1], comments=True)
                found.append((page.name, words))
    return found


def test_there_are_commands() -> None:
    assert len(commands()) > 25


@pytest.mark.parametrize(
    ("page", "words"), [pytest.param(p, w, id=f"{p}: {' '.join(w)[:60]}") for p, w in commands()]
)
def test_the_program_takes_it(page: str, words: list[str]) -> None:
    group = typer.main.get_command(cli.app)
    name, *rest = words
    command = group.commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, list(rest))
    if sets := context.params.get("sets"):
        load({"teacher": "teacher.pth", "data": "photos"}, sets=sets)


def test_links_lead_somewhere() -> None:
    lost = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not lost
