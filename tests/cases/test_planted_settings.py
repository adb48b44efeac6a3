"""A `mipkd.toml` that a stranger left in the working folder runs no program."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mipkd.core.errors import UsageError
from pipeline import cli
from pipeline.config import load


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose settings would run a program; the file that it would make."""
    (tmp_path / "mipkd.toml").write_text(
        '[device]\naddress = "ssh://x"\nssh_config = "./s"\ntries = 0\n'
    )
    (tmp_path / "s").write_text("Host *\n  ProxyCommand sh -c 'touch PWNED; false'\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "PWNED"


@pytest.mark.parametrize(
    "words",
    [
        ("plan",),
        ("run",),
        ("plan", "--model", "student.onnx"),
        ("train", "--arch", "edsr:c8b1"),
        ("study",),
        ("doctor", "--device", "ssh://board"),
        ("run", "--set", "device.tries=1"),
    ],
)
def test_settings_that_run_a_program_are_not_taken_from_the_working_folder(
    planted: Path, words: tuple[str, ...]
) -> None:
    said = CliRunner().invoke(cli.app, list(words))
    assert said.exit_code == 2
    assert "mipkd.toml: [device] is taken only from options or a file" in said.output
    assert "--config mipkd.toml" in said.output
    assert not planted.exists()


@pytest.mark.parametrize("section", ["device = 3", "[device]", "device.tries = 1", "[[device]]"])
def test_no_writing_of_the_section_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    (tmp_path / "mipkd.toml").write_text(section)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"\[device\] is taken only"):
        load({})


def test_a_file_that_is_named_may_hold_them(planted: Path) -> None:
    assert load({}, file=Path("mipkd.toml")).device.address == "ssh://x"
    assert not planted.exists()
