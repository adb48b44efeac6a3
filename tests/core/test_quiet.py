"""What a library says on its own is not heard; what it did to the process is undone."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest

from mipkd.core.quiet import quiet


def talk() -> None:
    print("progress")
    print("advice", file=sys.stderr)
    warnings.warn("old", stacklevel=1)
    logging.getLogger("library.part").warning("hm")
    logging.getLogger("library.part").error("no")


def test_only_errors_are_heard(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as warned, quiet("library"):
        talk()
    assert (*capsys.readouterr(),) == ("", "")
    assert not warned
    assert [record.getMessage() for record in caplog.records] == ["no"]


def test_afterwards_all_is_as_before_even_when_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    root, said = logging.root.level, []

    def fail() -> None:
        said.append(os.environ["CI"])
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), quiet("library", "root"):
        fail()
    assert said == ["true"]  # the makers are told nothing
    assert "CI" not in os.environ
    assert logging.getLogger("library").level == logging.NOTSET
    assert logging.root.level == root
