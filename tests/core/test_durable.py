"""Files and folders are replaced whole, or stay as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mipkd.core import durable


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_a_write_that_fails_leaves_the_file_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    durable.write_bytes(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write_bytes(file, b"new")
    assert (file.read_bytes(), names(tmp_path)) == (b"old", ["a.json"])


def test_what_is_written_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, sync = [], os.fsync

    def note(handle: int) -> None:
        seen.append(names(tmp_path))
        sync(handle)

    monkeypatch.setattr(os, "fsync", note)
    durable.write_bytes(tmp_path / "a.json", b"new")
    assert seen[0] != ["a.json"]
    assert seen[-1] == ["a.json"]  # the folder, after the rename


def test_a_file_keeps_its_rights_and_a_link_its_place(tmp_path: Path) -> None:
    file, link = tmp_path / "a", tmp_path / "link"
    durable.write_bytes(file, b"old")
    file.chmod(0o600)
    link.symlink_to(file)
    durable.write_bytes(link, b"new")
    assert (file.read_bytes(), link.is_symlink()) == (b"new", True)
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_longest_name_that_a_file_system_takes(tmp_path: Path) -> None:
    file = tmp_path / ("a" * 255)
    durable.write_bytes(file, b"")
    assert names(tmp_path) == [file.name]


@pytest.mark.parametrize("before", ["", "one\n", "one\ntw"])
def test_lines_start_on_a_line_of_their_own(tmp_path: Path, before: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(before)
    durable.append_lines(file, ["new", "newer"])
    assert file.read_text().splitlines() == [*before.splitlines(), "new", "newer"]
    assert file.read_text().startswith(before)


def test_a_folder_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for text in ("old", "new"):
        with durable.new_folder(out, keep=lambda _: False) as folder:
            (folder / "a").write_text(text)
    trouble = durable.new_folder(out, keep=lambda _: False)
    with pytest.raises(FileNotFoundError), trouble as folder:
        (folder / "a" / "b").write_text("half")
    assert ((out / "a").read_text(), names(tmp_path)) == ("new", ["out"])


def test_a_folder_with_others_files_is_put_aside_each_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(3):
        with durable.new_folder(out, keep=lambda old: (old / "mine").is_file()) as folder:
            (folder / "a").write_text(str(number))
        (out / "mine").write_text(f"mine {number}")
    assert names(tmp_path) == ["out", "out.kept", "out.kept-2"]
    assert [(tmp_path / n / "mine").read_text() for n in names(tmp_path)] == [
        *("mine 2", "mine 0", "mine 1")
    ]


def test_what_a_link_leads_to_is_not_deleted(tmp_path: Path) -> None:
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    (elsewhere / "a").write_text("old")
    out.symlink_to(elsewhere)
    for text in ("new", "newer"):
        with durable.new_folder(out, keep=lambda _: False) as folder:
            (folder / "a").write_text(text)
    assert (out / "a").read_text() == "newer"
    assert (elsewhere / "a").read_text() == "old"
    assert names(tmp_path) == ["elsewhere", "out"]
