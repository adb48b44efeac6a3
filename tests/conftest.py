"""Fixtures that every room's tests share."""

import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.logging import RichHandler

from mipkd.core import apart
from pipeline.cli.terminal import ROOMS

# Before torch is imported, and for the processes that tests start. The nets here are so small that
# a second thread gains nothing, and beside other work on the machine, threads that wait for each
# other at every operation take ten times as long and more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
_HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "pydantic", "scipy")


@pytest.fixture(autouse=True, scope="session")
def _quick_processes(_cache: None) -> None:
    """Work apart starts in processes that have imported what is slow to import."""
    if sys.platform == "linux":
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(_HEAVY))
        apart.START_METHOD = "forkserver"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process has all tests of a file, and of all files that share the run of `once`."""
    from xdist.scheduler import LoadFileScheduling

    class BySharedRun(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "once" if _shares_a_run(file) else file

    return BySharedRun(config, log)


@cache
def _shares_a_run(file: str) -> bool:
    near = file.startswith("tests/pipeline/")  # whose conftest.py has it
    return near and bool(re.search(r"\b(once|finished): ", (ROOT / file).read_text()))


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests, and the processes that they start, keep nothing in the user's own cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """What the command line sets, in a test or in a fixture of many, is gone in the next test."""
    _as_at_first()
    yield
    _as_at_first()


def _as_at_first() -> None:
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if not isinstance(one, RichHandler)]
    root.setLevel(logging.WARNING)
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real test sets, photos and weights; tests that need it skip without it."""
    folder = Path(os.environ.get("MIPKD_ASSETS", ROOT.parent / "shared" / "assets"))
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"needs the assets (test sets, photos, weights): none at {folder}")
    return folder


@pytest.fixture(scope="session")
def spandrel() -> Any:
    """The optional reader of foreign checkpoints; tests that need it skip without it."""
    from mipkd.distill.spandrel_reader import import_spandrel  # torch, too early above

    try:
        return import_spandrel()
    except ImportError as error:
        pytest.skip(f"needs spandrel, the extra `foreign`: {error}")
