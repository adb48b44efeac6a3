"""Compiled models are kept for this user alone, by the content that they were compiled of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from targets._user_cache import engine_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="moves the cache as Linux does")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_is_the_users_and_nobody_elses(cache: Path) -> None:
    folder = engine_folder("openvino", "1.0", "GPU")
    assert folder is not None
    assert folder.parent == cache / "mipkd-pipeline" / "engines"
    assert folder.stat().st_mode & 0o077 == 0


def test_content_version_and_device_each_have_their_own(tmp_path: Path) -> None:
    file = tmp_path / "model.xml"
    file.write_bytes(b"one")
    first = engine_folder("openvino", "1.0", "GPU", files=[file])
    again = engine_folder("openvino", "1.0", "GPU", files=[file])
    others = [
        engine_folder("openvino", "1.1", "GPU", files=[file]),
        engine_folder("openvino", "1.0", "NPU", files=[file]),
        engine_folder("tensorrt", "1.0", "GPU", files=[file]),
    ]
    file.write_bytes(b"two")
    others.append(engine_folder("openvino", "1.0", "GPU", files=[file]))
    assert first == again
    assert len({first, *others}) == 5


def test_a_folder_that_others_may_write_is_not_used() -> None:
    folder = engine_folder("openvino", "1.0")
    assert folder is not None
    folder.chmod(0o777)
    assert engine_folder("openvino", "1.0") is None


def test_a_cache_that_cannot_be_made_is_none(cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    assert engine_folder("openvino", "1.0") is None


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert engine_folder("openvino", "1.0") is not None
    assert (tmp_path / ".cache" / "mipkd-pipeline" / "engines").is_dir()
    assert not Path("here").exists()
