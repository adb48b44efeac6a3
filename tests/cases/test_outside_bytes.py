"""Names that are no text, records that are damaged, and the last net under the command line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from hostile_graphs import good_graph
from rich.table import Table

from mipkd.core.texts import write_text
from pipeline.bundle.manifest import Model
from pipeline.bundle.trial import try_models
from pipeline.cli.terminal import print_any_name, print_wide
from pipeline.limits import LimitsConfig
from pipeline.run import Run
from pipeline.stage import stage

command_line = import_module("pipeline.cli.app")  # the package's `app` is what it runs
LATIN = os.fsdecode(b"caf\xe9")


def test_what_nobody_foresaw_is_called_a_bug_with_a_file_of_details(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError(f"{LATIN} is no number\nand more")

    monkeypatch.setattr(command_line, "app", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as left:
        command_line.main()
    assert left.value.code == 5
    what, hint = capsys.readouterr().err.splitlines()
    assert what.startswith("error: a bug of mipkd-pipeline: ValueError: caf")
    (file,) = tmp_path.iterdir()
    assert hint == f"hint: please report it, with {file}"
    text = file.read_text()
    assert "Traceback" in text
    assert "raise ValueError" in text


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_name_in_latin_1_is_printed_in_any_terminal(encoding: str, tmp_path: Path) -> None:
    words = ["-c", "from pipeline.cli.app import main; main()", "check", str(tmp_path / LATIN)]
    settings = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    said = subprocess.run([sys.executable, *words], capture_output=True, env=settings, check=False)
    assert said.returncode == 2
    assert b"caf\\xe9" in said.stderr
    assert said.stderr.startswith(b"error: ")
    assert b"Traceback" not in said.stderr


def test_tables_and_pages_hold_names_that_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, "ascii", "strict"))
    print_any_name()
    table = Table("image")
    table.add_row(LATIN)
    print_wide(table)
    sys.stdout.flush()
    assert b"caf\\xe9" in data.getvalue()
    write_text(tmp_path / "page.html", f"<p>{LATIN}</p>")
    assert (tmp_path / "page.html").read_bytes() == b"<p>caf\\udce9</p>"


@dataclass(frozen=True)
class Word:
    text: str


@stage(version=1)
def count_letters(inputs: Word, *, out: Path) -> int:
    """A step."""
    return len(inputs.text)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'"four"', b"null", b"{}"])
def test_a_damaged_record_counts_as_not_run(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Run(tmp_path).step(count_letters, Word("four"))
    folder = tmp_path / "count_letters" / first.key
    (folder / "record.json").write_bytes(content)
    (folder / "receipt.json").write_bytes(content)
    again = Run(tmp_path)
    assert again.step(count_letters, Word("four")).value == 4
    assert not again.events[0].remembered
    assert "is damaged, the step is made again" in caplog.text
    assert json.loads((folder / "record.json").read_text()) == 4
    assert Run(tmp_path).step(count_letters, Word("four")).value == 4


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_onnx_runtime_opens_a_model_whose_name_is_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / LATIN / "model" / "cpu-fp32"
    folder.mkdir(parents=True)
    file = good_graph(folder).relative_to(tmp_path / LATIN).as_posix()
    try_models(
        tmp_path / LATIN,
        [Model("cpu", "fp32", "measured", file, 4, 2, 1, {}, (), {}, 7, "")],
        LimitsConfig(),
    )
