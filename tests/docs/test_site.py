"""The pages as a whole: links, indexes, tables of settings, and the site made of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from mipkd.losses.mixture_of_priors import MixtureOfPriors
from pipeline.judge.bounds import GateConfig, MetricBounds

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "PACKAGE.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_links_lead_somewhere() -> None:
    lost = [
        f"{page.relative_to(ROOT)}: {file}#{heading}"
        for page in PAGES
        for file, heading in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text())
        if "://" not in file and not leads(page.parent / file if file else page, heading)
    ]
    assert not lost


def leads(page: Path, heading: str) -> bool:
    if not page.exists() or not heading:
        return page.exists()
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return heading in [re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles]


@pytest.mark.parametrize("folder", ["decisions", "results"])
def test_an_index_names_every_page_of_its_folder(folder: str) -> None:
    home = ROOT / "docs" / folder
    index = (home / "README.md").read_text()
    pages = [*home.glob("0*.md"), *home.glob("*/README.md")]
    assert [p for p in pages if f"]({p.relative_to(home)})" not in index] == []


@pytest.mark.parametrize(
    ("page", "settings", "prefix"),
    [
        ("method", MixtureOfPriors, ""),
        ("measuring", GateConfig, ""),
        ("measuring", MetricBounds, r"metrics\.NAME\."),
    ],
)
def test_tables_of_settings_have_their_defaults(
    page: str, settings: type[BaseModel], prefix: str
) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    shown = dict(re.findall(rf"^\| `{prefix}(\w+)` \| ([\w.]+) \|", text, re.MULTILINE))
    fields = {
        name: str(field.default).lower()
        for name, field in settings.model_fields.items()
        if field.default_factory is None  # a section of its own
    }
    assert shown == fields


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs sphinx, myst-parser and furo, the extra `docs`")
    strict = ["--fail-on-warning", "--keep-going", "--quiet", "--doctree-dir", str(tmp_path / "d")]
    command = [sys.executable, "-m", "sphinx", *strict, str(ROOT / "docs"), str(tmp_path / "html")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "html/index.html").is_file()
