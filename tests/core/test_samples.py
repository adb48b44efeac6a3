"""The sample photos that installed packages bring."""

import sys
from pathlib import Path

import pytest

from mipkd.core.errors import MissingError
from mipkd.core.images import read_rgb
from mipkd.core.samples import sample_photos, sample_tests


def test_every_sample_is_installed_and_large_enough_to_train_and_test_on() -> None:
    for file in sample_photos() + sample_tests():
        assert min(read_rgb(file).shape[:2]) >= 256


def test_photos_to_train_on_are_not_tested_on() -> None:
    train, test = ({f.read_bytes() for f in files()} for files in (sample_photos, sample_tests))
    assert len(train) == len(sample_photos())
    assert len(test) == len(sample_tests())
    assert not train & test


def test_tests_are_in_colour() -> None:
    for file in sample_tests():
        assert read_rgb(file).std(axis=2).mean() > 2


def test_names_are_unique() -> None:
    names = [file.stem for file in sample_photos() + sample_tests()]
    assert len(names) == len(set(names))


def test_a_package_without_its_images_is_said_to_lack_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "skimage").mkdir()
    (tmp_path / "skimage/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    with pytest.raises(MissingError, match=r"chelsea\.png is not there") as error:
        sample_tests()
    assert "--val" in error.value.hint
