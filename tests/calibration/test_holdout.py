"""A search is judged on crops of photos that calibration does not see, and on drawn pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.holdout import hold
from calibration.pages import TO_JUDGE, page
from calibration.patches import choose, split
from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray, downscale
from mipkd.core.photos import PhotoWriter
from mipkd.core.records import Holdout, Photos


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return stored(tmp_path, 10)


def stored(folder: Path, count: int) -> Photos:
    """Photos of noise around a brightness of their own, so that a crop tells where it is from."""
    (folder / "store").mkdir()
    writer, rng = PhotoWriter(folder / "store"), np.random.default_rng(0)
    for number in range(count):
        hr = rng.integers(20 * number, 20 * number + 9, (128, 128, 3), dtype=np.uint8)
        writer.add(f"{number}.png", hr, downscale(hr, 2))
    writer.close()
    return Photos(folder=folder / "store", sha256="", source="photos", scale=2, count=count)


def held(photos: Photos, out: Path, seed: int = 0, size: int = 32) -> Holdout:
    out.mkdir(exist_ok=True)
    return hold(photos, count=6, pages=2, size=size, seed=seed, split_seed=0, out=out)


def test_no_photo_is_on_both_sides(photos: Photos, tmp_path: Path) -> None:
    mine, others = split(photos, 0)
    assert len(others) == 2
    assert {p.name for p in mine} | {p.name for p in others} == {f"{i}.png" for i in range(10)}
    seen = np.load(choose(photos, count=16, size=24, seed=0, out=tmp_path).file)
    crops = np.load(held(photos, tmp_path / "h").lr)[:6]
    assert not set(seen.mean((1, 2, 3)) // 20) & set(crops.mean((1, 2, 3)) // 20)


def test_what_confirms_is_cut_from_other_photos_and_has_other_pages(
    photos: Photos, tmp_path: Path
) -> None:
    found = held(photos, tmp_path / "h")
    assert found.confirming_lr is not None
    first, second = np.load(found.lr), np.load(found.confirming_lr)
    assert first.shape == second.shape
    brightness = [set(half[:6].mean((1, 2, 3)) // 20) for half in (first, second)]
    assert brightness[0] | brightness[1] == {p.lr_HWC.mean() // 20 for p in split(photos, 0)[1]}
    assert not brightness[0] & brightness[1]
    assert not any(np.array_equal(a, b) for a in first[6:] for b in second[6:])


def test_pairs_belong_together_and_pages_come_last(photos: Photos, tmp_path: Path) -> None:
    found = held(photos, tmp_path / "h")
    lr, hr = np.load(found.lr), np.load(found.hr)
    assert lr.shape == (8, 32, 32, 3)
    assert hr.shape == (8, 64, 64, 3)
    assert (found.photos, found.pages, found.size) == (6, 2, (32, 32))
    inside = (slice(4, -4), slice(4, -4))
    for small, large in zip(lr[:6], hr[:6], strict=True):
        assert np.abs(small[inside].astype(int) - downscale(large, 2)[inside]).max() <= 1
    assert np.array_equal(lr[6], downscale(hr[6], 2))


def test_a_seed_gives_the_same_crops_and_another_seed_others(
    photos: Photos, tmp_path: Path
) -> None:
    one, same, other = (held(photos, tmp_path / str(i), s) for i, s in enumerate((3, 3, 4)))
    assert one.sha256 == same.sha256
    assert one.sha256 != other.sha256


def test_crops_are_as_large_as_the_photos_allow(photos: Photos, tmp_path: Path) -> None:
    assert held(photos, tmp_path / "h", size=500).size == (64, 64)


def test_a_page_is_mostly_paper_with_strokes_in_it() -> None:
    white = page(256, 0, 0, TO_JUDGE)
    assert white.shape == (256, 256, 3)
    assert 0.3 < (white == 255).all(-1).mean() < 0.95
    assert (white == 0).all(-1).mean() > 0.02
    assert not np.array_equal(white, page(256, 1, 0, TO_JUDGE))


def test_a_single_photo_cannot_be_calibrated_on_and_held_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 1 photo that can be used"):
        choose(stored(tmp_path, 1), count=4, size=24, seed=0, out=tmp_path)


def test_without_truth_a_net_makes_what_stands_for_it_of_photos_and_pages(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    writer, rng = PhotoWriter(tmp_path / "store"), np.random.default_rng(0)
    for number in range(10):
        writer.add(f"{number}.png", None, rng.integers(0, 255, (40, 51, 3), dtype=np.uint8))
    writer.close()
    frames = Photos(tmp_path / "store", "", "frames", 2, 10, lr_from="frames")

    def double(lr_HWC: ByteArray) -> ByteArray:
        return np.repeat(np.repeat(lr_HWC, 2, 0), 2, 1) // 2

    (tmp_path / "h").mkdir()
    asked = {"count": 6, "pages": 2, "size": 32, "seed": 0, "split_seed": 0}
    found = hold(frames, **asked, out=tmp_path / "h", upscale=double, against="teacher")
    assert found.against == "teacher"
    for lr, hr in ((found.lr, found.hr), (found.confirming_lr, found.confirming_hr)):
        assert lr is not None
        assert hr is not None
        pairs = list(zip(np.load(lr), np.load(hr), strict=True))
        assert len(pairs) == 8
        assert all(np.array_equal(double(low), high) for low, high in pairs)
