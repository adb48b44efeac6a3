"""The sample photos that come with the package."""

from pathlib import Path

import pytest

from mipkd.core import samples
from mipkd.core.errors import MissingError
from mipkd.core.images import read_rgb
from mipkd.core.samples import sample_photos, sample_tests
from pipeline.judge.regression import FEWEST_COMPARED

ROOT = Path(__file__).parents[2]


def test_photos_are_large_enough_to_train_on_at_every_scale() -> None:
    assert len(sample_photos()) >= 10
    assert all(min(read_rgb(file).shape[:2]) >= 4 * 48 for file in sample_photos())


def test_there_are_enough_tests_to_judge_on_and_their_sides_fit_every_scale() -> None:
    assert len(sample_tests()) >= FEWEST_COMPARED
    for height, width, _ in (read_rgb(file).shape for file in sample_tests()):
        assert height % 12 == width % 12 == 0


def test_no_photo_is_trained_and_tested_on() -> None:
    """By name: crops of one photo are called like it. By pixels: `keep_apart` of the demo's run."""
    trained, tested = ({_photo(f) for f in files()} for files in (sample_photos, sample_tests))
    assert not trained & tested


def test_names_are_unique() -> None:
    names = [file.stem for file in sample_photos() + sample_tests()]
    assert len(names) == len(set(names))


def test_each_is_listed_with_its_source_and_small_enough_to_be_packaged() -> None:
    listed = (ROOT / "mipkd/samples/README.md").read_text()
    assert "CC0-1.0" in listed
    for file in sample_photos() + sample_tests():
        assert f"{file.parent.name}/{_photo(file)}" in listed
    assert sum(f.stat().st_size for f in sample_photos() + sample_tests()) < 1.5e6


def test_a_package_without_its_images_is_said_to_lack_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "_FOLDER", tmp_path)
    with pytest.raises(MissingError, match=r"sample photos: none in .*test") as error:
        sample_tests()
    assert "--val" in error.value.hint


def _photo(crop: Path) -> str:
    """The name of the photo that a crop was cut from."""
    return crop.stem.rstrip("-0123456789")
