"""Runs over time: one line a model, changes that stay, no alarm at a single bad run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bench.comparisons import mean_of, students, valid_sizes
from pipeline.report import history
from pipeline.report.history import Line, find_changes
from pipeline.report.results_file import read_results

Finished = Any  # the record of conftest.py
Command = Callable[..., Any]

LINE = Line(
    *("2026-01-01T00:00:00+00:00", "edsr", "abc", "h", "a CPU", "cpu", "int8", "128x128"),
    *(20.0, 30.0, "t", "PASS"),
)


def at(values: Sequence[float], figure: str = "p50_ms") -> list[int]:
    return [change.at for change in find_changes(values, figure)]


def test_a_step_that_stays_is_found_where_it_is() -> None:
    assert at([20, 20.1, 19.9, 20, 20.2, 23, 23.1, 22.9, 23]) == [5]
    assert at([30.0, 30.0, 30.0, 29.9, 29.9], "psnr_y_db") == [3]


def test_one_bad_run_between_good_ones_is_no_change() -> None:
    assert at([20, 20.1, 19.9, 40, 20, 20.1, 19.9, 20]) == []


def test_noise_alone_is_rarely_a_change() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(bool(at(20 * rng.normal(1, 0.01, 30))) for _ in range(100))
    assert alarms <= 5


def test_two_changes_are_two() -> None:
    assert at([20.0] * 6 + [30.0] * 6 + [25.0] * 6) == [6, 12]


def test_each_finished_run_adds_its_models(once: Finished) -> None:
    found = history.read(once.root.parent / history.FILE)
    assert {(line.target, line.precision) for line in found} >= {("cpu", "fp32"), ("cpu", "int8")}
    evidence = read_results(once.root / "report/latest/results.json")
    m = next(m for m in students(evidence.measurements) if m.target == "cpu")
    cpu = next(line for line in found if line.target == "cpu")
    height, width = max(valid_sizes(m), default=(0, 0))  # none on a machine that is too busy
    assert (cpu.run, cpu.size) == ("run", f"{width}x{height}" if width else "")
    assert bool(cpu.p50_ms) == bool(width)
    assert cpu.psnr_y_db == mean_of(m)


def test_the_command_tells_changes_and_draws_them(tmp_path: Path, ended: Command) -> None:
    values = [20.0, 20.1, 19.9, 20.0, 24.0, 24.1, 23.9]
    texts = [
        json.dumps(asdict(replace(LINE, created=f"2026-01-{day:02}T00:00:00+00:00", p50_ms=ms)))
        for day, ms in enumerate(values, 1)
    ]
    (tmp_path / history.FILE).write_text("\n".join([*texts, '{"created": "half']))
    said = ended("history", tmp_path)
    assert said.code == 0, said.err
    assert "changed  edsr: cpu int8 at LR 128x128: 2026-01-05" in said.out
    assert "20.000 to 24.000 ms (+20.0%)" in said.out
    page = (tmp_path / "history.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")


def test_folders_without_runs_and_damaged_lines(tmp_path: Path, ended: Command) -> None:
    said = ended("history", tmp_path)
    assert (said.code, "no history.jsonl" in said.err) == (2, True)
    odd = ("nonsense", "[]", "null", "[" * 100_000, json.dumps({**asdict(LINE), "p50_ms": 1e999}))
    whole = json.dumps(asdict(LINE))
    (tmp_path / history.FILE).write_bytes("\n".join([*odd, whole, ""]).encode() + b"\xff\xfe\n")
    said = ended("history", tmp_path)
    assert (said.code, "edsr" in said.out) == (0, True)
    assert said.err.count("6 lines cannot be read: left out") == 1
    (tmp_path / history.FILE).write_text("nonsense\n")
    said = ended("history", tmp_path)
    assert (said.code, "no line of a run in it" in said.err) == (2, True)


def test_a_runs_line_after_half_a_line_is_a_line_of_its_own(once: Finished, tmp_path: Path) -> None:
    file = tmp_path / history.FILE
    evidence = read_results(once.root / "report/latest/results.json")
    history.append(evidence, file)
    whole = file.read_text()
    file.write_text(whole + whole[:40])
    history.append(evidence, file)
    assert file.read_text() == whole + whole[:40] + "\n" + whole
    assert history.read(file) == sorted(2 * list(history.lines_of(evidence)), key=created)


def created(line: Line) -> str:
    return line.created


@pytest.fixture
def two(once: Finished, tmp_path: Path) -> list[Path]:
    """A run, and one whose INT8 has other figures."""
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for folder in folders:
        shutil.copytree(once.root / "report", folder / "report", symlinks=True)
    file = folders[1] / "report/latest/results.json"
    stated = json.loads(file.read_text())
    for m in stated["measurements"]:
        if (m["target"], m["precision"], m["role"]) == ("cpu", "int8", "student"):
            for score in m["scores"]:
                score["metrics"]["psnr_y"] -= 0.1
    file.write_text(json.dumps(stated))
    return folders


def test_pages_replace_pages_alone(two: list[Path], tmp_path: Path, ended: Command) -> None:
    (tmp_path / history.FILE).write_text(json.dumps(asdict(LINE)) + "\n")
    page = tmp_path / "page.html"
    for words in (("history", tmp_path), ("report", *two)):
        for _ in range(2):
            assert ended(*words, "-o", page).code == 0
        page.write_text("<p>mine</p>")
        said = ended(*words, "-o", page)
        assert (said.code, page.read_text()) == (2, "<p>mine</p>")
        assert "is no page of this program" in said.err
        page.unlink()


def test_two_runs_on_one_page(two: list[Path], tmp_path: Path, ended: Command) -> None:
    said = ended("report", *two, "--out", tmp_path / "both.html")
    assert said.code == 0, said.err
    page = (tmp_path / "both.html").read_text()
    assert "-0.100" in page.replace("\u2212", "-")
    assert "b/run" in page
    assert "not interleaved" in page


def test_runs_that_cannot_be_compared(two: list[Path], tmp_path: Path, ended: Command) -> None:
    said = ended("report", two[0], tmp_path, "--out", tmp_path / "both.html")
    assert (said.code, "no results of a run" in said.err) == (2, True)
    file = two[1] / "report/latest/results.json"
    stated = json.loads(file.read_text())
    stated["student"]["scale"] = 3
    file.write_text(json.dumps(stated))
    said = ended("report", *two, "--out", tmp_path / "both.html")
    assert (said.code, "is of scale x3" in said.err) == (2, True)
