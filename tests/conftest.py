"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real test sets, photos and weights; tests that need it skip without it."""
    folder = Path(os.environ.get("MIPKD_ASSETS", ROOT.parent / "shared" / "assets"))
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"needs the assets (test sets, photos, weights): none at {folder}")
    return folder
