"""Photos and test sets as users have them: good, corrupt, tiny, published or not."""

import logging
from pathlib import Path

import numpy as np
import pytest

from mipkd.core.errors import UsageError
from mipkd.core.images import downscale, write_png
from mipkd.core.photos import open_photos
from mipkd.distill.data import (
    PatchSampler,
    load_tests,
    prepare_photos,
    prepare_tests,
    probe_images,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(81, 67), (64, 96)]):
        write_png(folder / f"{index}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return folder


def prepared(photos: Path, tmp_path: Path, patch: int = 16) -> object:
    out = tmp_path / "store"
    out.mkdir(exist_ok=True)
    return prepare_photos(photos, scale=2, patch=patch, out=out)


def test_stored_pixels_are_the_photos_and_their_bicubic(photos: Path, tmp_path: Path) -> None:
    store = prepared(photos, tmp_path)
    for photo in open_photos(store):
        assert np.array_equal(photo.lr_HWC, downscale(np.array(photo.hr_HWC), 2))
    assert [p.hr_HWC.shape[:2] for p in open_photos(store)] == [(80, 66), (64, 96)]


def test_a_corrupt_photo_among_good_ones_is_named_skipped_and_counted(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    with caplog.at_level(logging.WARNING):
        store = prepared(photos, tmp_path)
    assert store.count == 2
    assert len(store.skipped) == 1
    assert "skipped broken.jpg" in caplog.text


def test_photos_smaller_than_a_patch_are_refused_with_their_size(
    photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"none of 2 photos can be used.*66x80 is smaller") as e:
        prepared(photos, tmp_path, patch=48)
    assert "96 pixels a side" in e.value.hint


def test_a_batch_is_a_function_of_seed_and_step(photos: Path, tmp_path: Path) -> None:
    store = prepared(photos, tmp_path)
    one = PatchSampler(store, patch=16, batch=3, seed=7)
    other = PatchSampler(store, patch=16, batch=3, seed=7)
    other.batch(0)
    assert all(a.equal(b) for a, b in zip(one.batch(5), other.batch(5), strict=True))
    assert not one.batch(5)[0].equal(one.batch(6)[0])


def test_lr_and_hr_patches_show_the_same_place(photos: Path, tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 96)[:, None] / 2 + np.linspace(0, 255, 64)[None] / 2
    write_png(photos / "0.png", np.repeat(smooth[..., None], 3, 2).astype(np.uint8))
    (photos / "1.png").unlink()
    store = prepared(photos, tmp_path)
    lr, hr = PatchSampler(store, patch=16, batch=16, seed=0).batch(0)
    assert lr.shape == (16, 3, 16, 16)
    means = hr.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert (means - lr)[..., 2:-2, 2:-2].abs().max() < 0.02


def test_a_published_set_uses_its_own_lr(assets: Path, tmp_path: Path) -> None:
    for source in (assets / "test/Set5", assets / "test/Set5/HR"):
        tests = prepare_tests(source, scale=4, out=tmp_path)
        assert tests.lr_from == "published"
        assert len(load_tests(tests)) == 5


def test_an_lr_file_of_the_wrong_size_is_named(photos: Path, tmp_path: Path) -> None:
    (photos / "HR").mkdir()
    for file in photos.glob("*.png"):
        file.rename(photos / "HR" / file.name)
    lr = photos / "LR_bicubic/X2"
    lr.mkdir(parents=True)
    for index in range(2):
        write_png(lr / f"{index}x2.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UsageError, match=r"0x2\.png: 9x9 does not fit"):
        prepare_tests(photos, scale=2, out=tmp_path)


def test_samples_need_no_download_and_do_not_overlap(tmp_path: Path) -> None:
    tests = prepare_tests(None, scale=2, out=tmp_path / "t")
    (tmp_path / "p").mkdir()
    store = prepare_photos(None, scale=2, patch=48, out=tmp_path / "p")
    assert tests.is_sample
    assert store.is_sample
    assert not {p.name for p in open_photos(store)} & set(tests.images)


def test_probe_images_are_few(assets: Path) -> None:
    pairs = probe_images(assets / "test/B100", scale=4)
    assert len(pairs) == 5
