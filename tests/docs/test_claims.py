"""Figures in tables have a file: what README and docs/results claim stands in committed JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"
PAGES = [ROOT / "README.md", *sorted(RESULTS.rglob("README.md"))]
FIGURE = re.compile(r"(?<![\w.-])[-+]?\d+\.\d+(?![\w.])")  # no licence's or program's version


def tables(page: Path) -> str:
    return "".join(re.findall(r"^\|.*\n", page.read_text(), re.MULTILINE))


def evidence(page: Path) -> list[Path]:
    """The JSON files of a page's own folder; README's are those of the folders that it links."""
    linked = re.findall(r"\]\((docs/results/[\w.-]+)/", page.read_text())
    folders = [ROOT / one for one in linked] if page.parent == ROOT else [page.parent]
    return [f for one in folders for f in sorted(one.rglob("*")) if f.suffix in (".json", ".jsonl")]


def records(file: Path) -> list[Any]:
    text = file.read_text()
    return [json.loads(line) for line in (text.splitlines() if file.suffix == ".jsonl" else [text])]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield abs(value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_figure_of_a_table_stands_in_a_file_beside_it(page: Path) -> None:
    shown = {figure.lstrip("+-") for figure in FIGURE.findall(tables(page))}
    found = {number for file in evidence(page) for one in records(file) for number in numbers(one)}
    scaled = [number * unit for number in found for unit in (1, 100, 1000)]  # shares in %, s in ms
    known = {f"{number:.{digits}f}" for number in scaled for digits in (1, 2, 3)}
    assert shown <= known, f"no file has: {sorted(shown - known)}"


def test_there_are_figures_to_hold() -> None:
    assert sum(len(FIGURE.findall(tables(page))) for page in PAGES) > 200
    assert FIGURE.findall(tables(ROOT / "README.md"))


def test_runs_and_studies_were_made_by_commits_without_changes_or_their_page_says_so() -> None:
    made = [f for f in RESULTS.rglob("*.json") if "commit" in study(f)]
    assert len(made) > 5
    for file in made:
        page = next(p for p in file.parents if (p / "README.md").is_file()) / "README.md"
        owned_up = re.search(r"checkouts\s+with\s+changes", page.read_text())
        commit = study(file)["commit"]
        clean = re.fullmatch(r"[0-9a-f]{7,40}( [0-9a-f]{7,40})*", commit)
        assert clean or owned_up, f"{file.relative_to(ROOT)}: {commit}"


def study(file: Path) -> dict[str, Any]:
    """A run or a study; nothing of other files."""
    record = json.loads(file.read_text())
    found = record.get("study", record) if isinstance(record, dict) else {}
    return found if isinstance(found, dict) else {}
