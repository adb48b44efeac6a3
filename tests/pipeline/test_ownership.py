"""A run uses folders that are its own, and deletes or replaces nothing that others made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mipkd.core.errors import UsageError
from pipeline.ownership import MARKER, claim, is_run, write_config

Finished = Any  # the record of conftest.py
Command = Callable[..., Any]
MODEL = Path(__file__).parents[2] / "pipeline/presets/teacher_x2.safetensors"
TAKEN = (
    *("bundle/thesis.txt", "report/latest/thesis.txt", "config.toml", "evidence.json"),
    *("collected/thesis.txt", "kit-cpu.pyz", "journal.jsonl", "lock", "lock.process"),
)


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def fill(folder: Path, *names: str) -> dict[str, bytes]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    return contents(folder)


@pytest.mark.parametrize("name", [*TAKEN, "bundle.old/a", "bundle.partial/a", "letters/a.txt"])
def test_a_folder_that_is_no_runs_is_refused(name: str, tmp_path: Path) -> None:
    before = fill(tmp_path, name)
    for dry in (True, False):
        with pytest.raises(UsageError, match="is not a run's folder: it holds ") as refused:
            claim(tmp_path, force=False, dry=dry)
        assert "--force" in refused.value.hint
        assert "--out" in refused.value.hint
    assert contents(tmp_path) == before


def test_every_command_refuses_it_before_any_work(tmp_path: Path, ended: Command) -> None:
    before = fill(tmp_path / "mine", "bundle/thesis.txt", "config.toml")
    for words in (
        ("run", "--model", MODEL),
        ("plan", "--model", MODEL),
        ("train", "--arch", "edsr:c8b1"),
        ("study", "--teacher", MODEL),
    ):
        said = ended(*words, "--out", tmp_path / "mine")
        assert said.code == 2, said.err
        what = f"error: --out: {tmp_path}/mine is not a run's folder: it holds bundle, config.toml"
        assert what in said.err.splitlines()
        assert "--force uses this one" in said.err
    assert contents(tmp_path / "mine") == before


def test_force_renames_what_lies_where_a_run_writes(tmp_path: Path) -> None:
    before = fill(tmp_path, *TAKEN, "letters/a.txt", "bundle.old/a")
    claim(tmp_path, force=True)
    after = contents(tmp_path)
    assert after.pop(MARKER)
    assert sorted(after.values()) == sorted(before.values())
    assert after["bundle.kept/thesis.txt"] == before["bundle/thesis.txt"]
    assert after["report/latest.kept/thesis.txt"] == before["report/latest/thesis.txt"]
    assert after["letters/a.txt"] == before["letters/a.txt"]
    claim(tmp_path, force=False)  # it is a run's from now on


def test_force_of_a_plan_changes_nothing(tmp_path: Path) -> None:
    before = fill(tmp_path, *TAKEN)
    claim(tmp_path, force=True, dry=True)
    assert contents(tmp_path) == before


def test_new_and_empty_folders_become_a_runs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "deep" / "new"):
        claim(folder, force=False, dry=True)
        assert not (folder / MARKER).exists()
        claim(folder, force=False)
        assert is_run(folder)


def test_folders_of_earlier_versions_are_known(once: Finished, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(once.root, tmp_path / "run", symlinks=True))
    (whole / MARKER).unlink()
    claim(whole, force=False, dry=True)
    (whole / "journal.jsonl").write_text('{"at": "20')
    claim(whole, force=False, dry=True)  # by its steps
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "lock").touch()
    claim(begun, force=False)
    half = tmp_path / "half"
    half.mkdir()
    half_line = '{"at": "2026-01-01T00:00:00+00:00", "event": "start"}\n{"at'
    (half / "journal.jsonl").write_text(half_line)
    claim(half, force=False)
    assert (half / "journal.jsonl").read_text() == half_line


@pytest.mark.parametrize("name", ["bundle/thesis.txt", "bundle/model/a.txt", "report/latest/a.txt"])
def test_own_files_in_a_runs_folders_are_refused_and_with_force_put_aside(
    name: str, finished: Finished, ended: Command
) -> None:
    fill(finished.root, name)
    for words in (
        (*finished.words, "--out", finished.root),
        ("plan", *finished.words[1:], "--out", finished.root),
        ("report", finished.root),
    ):
        said = ended(*words)
        assert said.code == 2
        assert f"{name} in {finished.root} was not made by this program" in said.err
        assert ("--force" in said.err) == (words[0] != "report")
        assert (finished.root / name).read_text() == f"mine: {name}"
    claim(finished.root, force=True)
    folder = "report/latest" if name.startswith("report") else "bundle"
    assert (finished.root / name.replace(folder, f"{folder}.kept")).is_file()


def test_a_changed_bundle_is_put_aside_and_a_whole_one_replaced(
    finished: Finished, ended: Command
) -> None:
    ended("report", finished.root)
    words = (*finished.words, "--out", finished.root)
    ended(*words)
    assert not list(finished.root.glob("*.kept*"))
    (finished.bundle / "README.md").write_text("my own words")
    said = ended(*words)
    assert "bundle: kept as bundle.kept" in " ".join(said.err.split())
    assert (finished.root / "bundle.kept/README.md").read_text() == "my own words"
    assert ended("verify", finished.bundle).code == 0


def test_an_edited_configuration_is_put_aside(tmp_path: Path) -> None:
    file, stated = tmp_path / "config.toml", {"distill": {"steps": 3}}
    write_config(file, "[distill]\nsteps = 3\n", None)
    write_config(file, "[distill]\nsteps = 4\n", None)
    assert [one.name for one in tmp_path.iterdir()] == ["config.toml"]
    edited = file.read_text().replace("steps = 4", "steps = 5")
    file.write_text(edited)
    write_config(file, "[distill]\nsteps = 6\n", None)
    assert (tmp_path / "config.toml.kept").read_text() == edited
    file.write_text("[distill]\nsteps = 3\n")  # of a version that left no mark
    write_config(file, "[distill]\nsteps = 7\n", stated)
    file.write_text("# mine\n[distill]\nsteps = 8\n")
    write_config(file, "[distill]\nsteps = 9\n", stated)
    assert (tmp_path / "config.toml.kept-2").read_text().startswith("# mine")
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_no_folder_or_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder"):
        claim(tmp_path / "file", force=True)
    with pytest.raises(UsageError, match="cannot write to"):
        claim(tmp_path / "file" / "run", force=False)


def test_a_foreign_history_gets_no_line(finished: Finished, ended: Command) -> None:
    history = finished.root.parent / "history.jsonl"
    history.write_text('{"browser": "tabs"}\n')
    ended(*finished.words, "--out", finished.root)
    assert history.read_text() == '{"browser": "tabs"}\n'
    history.write_text('{"created": "20')  # the first line of all, cut by a crash
    ended(*finished.words, "--out", finished.root)
    first, *lines = history.read_text().splitlines()
    assert first == '{"created": "20'
    assert {json.loads(line)["run"] for line in lines} == {"run"}


def test_a_kit_replaces_no_other_file(finished: Finished, tmp_path: Path, ended: Command) -> None:
    words = ("kit", finished.bundle, "--target", "cpu", "-o", tmp_path / "k.pyz")
    assert [ended(*words).code for _ in range(2)] == [0, 0]
    (tmp_path / "k.pyz").write_text("mine")
    said = ended(*words)
    assert (said.code, (tmp_path / "k.pyz").read_text()) == (2, "mine")
    assert "is there, and is no kit of this program" in said.err
