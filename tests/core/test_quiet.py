"""What a library says on its own is not heard; what it did to the process is undone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

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


def test_afterwards_all_is_as_before_even_when_it_failed() -> None:
    root = logging.root.level
    with pytest.raises(ValueError, match="broken"), quiet("library", "root"):
        raise ValueError("broken")
    assert logging.getLogger("library").level == logging.NOTSET
    assert logging.root.level == root


def test_runtimes_are_told_to_report_nothing() -> None:
    """Of ONNX Runtime, which keeps a file of it in the user's cache; OpenVINO: test_openvino."""
    code = "import mipkd.core, onnxruntime as o; o.get_available_providers()"
    with tempfile.TemporaryDirectory() as cache:
        kept = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
        settings = {**kept, "XDG_CACHE_HOME": cache, "HOME": cache}
        subprocess.run([sys.executable, "-c", code], env=settings, check=True)
        assert list(Path(cache).rglob("*")) == []
