"""Photos and test sets as users have them: good, corrupt, tiny, published or not."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mipkd.core.errors import StageError, UsageError
from mipkd.core.folders import list_images
from mipkd.core.images import downscale, read_rgb, write_png
from mipkd.core.photos import open_photos
from mipkd.core.records import Photos
from mipkd.distill.data import load_tests, prepare_photos, prepare_tests, probe_images
from mipkd.distill.patch_sampler import PatchSampler


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(81, 67), (64, 96)]):
        write_png(folder / f"{index}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return folder


def prepared(photos: Path, tmp_path: Path, patch: int = 16) -> Photos:
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


def test_photos_smaller_than_a_patch_are_skipped_and_named(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = prepared(photos, tmp_path, patch=33)
    assert store.count == 1
    assert store.skipped == ("1.png: 96x64 is smaller than a patch of 66x66",)
    named, counted = (record.getMessage() for record in caplog.records)
    assert named.startswith("skipped 1.png: 96x64")
    assert f"{photos}: left out: 1 too small" in counted
    assert store.left_out == {"too small": 1}


def test_of_many_skipped_photos_the_first_are_named_and_all_are_kept(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(50):
        (photos / f"broken-{number:02}.jpg").write_bytes(b"\xff\xd8 not a photo")
    store = prepared(photos, tmp_path)
    assert len(store.skipped) == 50
    *first, last = (record.getMessage() for record in caplog.records)
    assert [one.split(":")[0] for one in first] == [f"skipped broken-0{n}.jpg" for n in range(3)]
    named = ", ".join(f"broken-0{n}.jpg" for n in range(3))
    assert last == f"{photos}: left out: 50 unreadable: {named}, ..."


def test_photos_all_smaller_than_a_patch_are_refused_with_their_size(
    photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"none of 2 photos can be used.*66x80 is smaller") as e:
        prepared(photos, tmp_path, patch=48)
    assert "96 pixels a side" in e.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to fill a disk")
def test_a_full_disk_is_told_with_the_space_that_is_needed(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/hr.u8").symlink_to("/dev/full")
    with pytest.raises(StageError, match="store: no space left on the disk") as error:
        prepared(photos, tmp_path)
    assert "up to 0.0 MB" in error.value.hint


def test_a_store_may_be_moved_and_photos_changed_after_it_was_made(
    photos: Path, tmp_path: Path
) -> None:
    store = prepared(photos, tmp_path)
    for file in photos.iterdir():
        file.unlink()
    moved = replace(store, folder=store.folder.rename(tmp_path / "moved"))
    assert len(open_photos(moved)) == 2
    assert str(tmp_path) not in (moved.folder / "index.json").read_text()


def test_the_fingerprint_follows_the_pixels(photos: Path, tmp_path: Path) -> None:
    first = prepared(photos, tmp_path)
    (photos / "0.png").rename(photos / "00.png")
    assert prepared(photos, tmp_path).sha256 == first.sha256
    write_png(photos / "00.png", np.zeros((80, 66, 3), np.uint8))
    assert prepared(photos, tmp_path).sha256 != first.sha256


def test_a_batch_is_a_function_of_seed_and_step(photos: Path, tmp_path: Path) -> None:
    store = prepared(photos, tmp_path)
    one = PatchSampler(store, patch=16, batch=3, seed=7)
    other = PatchSampler(store, patch=16, batch=3, seed=7)
    other.batch(0)
    assert all(
        a.equal(b) for a, b in zip(one.batch(5).tensors(), other.batch(5).tensors(), strict=True)
    )
    assert not one.batch(5).lr_NCHW.equal(one.batch(6).lr_NCHW)


def test_lr_and_hr_patches_show_the_same_place(photos: Path, tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 96)[:, None] / 2 + np.linspace(0, 255, 64)[None] / 2
    write_png(photos / "0.png", np.repeat(smooth[..., None], 3, 2).astype(np.uint8))
    (photos / "1.png").unlink()
    store = prepared(photos, tmp_path)
    lr, hr = PatchSampler(store, patch=16, batch=16, seed=0).batch(0).tensors()
    assert lr.shape == (16, 3, 16, 16)
    means = hr.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert (means - lr)[..., 2:-2, 2:-2].abs().max() < 0.02


def test_a_published_set_uses_its_own_lr(assets: Path, tmp_path: Path) -> None:
    for source in (assets / "test/Set5", assets / "test/Set5/HR"):
        tests = prepare_tests(source, scale=4, out=tmp_path)
        assert tests.lr_from == "published"
        assert len(load_tests(tests)) == 5


@pytest.fixture
def published(photos: Path) -> Path:
    """A set of two images with `HR/` and `LR_bicubic/X2/`."""
    (photos / "HR").mkdir()
    (photos / "LR_bicubic/X2").mkdir(parents=True)
    for file in list_images(photos):
        image = read_rgb(file)[:64, :64]
        write_png(photos / "HR" / file.name, image)
        write_png(photos / "LR_bicubic/X2" / f"{file.stem}x2.png", downscale(image, 2))
        file.unlink()
    return photos


def test_a_scale_without_published_lr_gets_our_own(published: Path, tmp_path: Path) -> None:
    assert prepare_tests(published, scale=2, out=tmp_path).lr_from == "published"
    assert prepare_tests(published, scale=4, out=tmp_path).lr_from == "bicubic"


def test_an_lr_file_of_the_wrong_size_is_named(published: Path, tmp_path: Path) -> None:
    write_png(published / "LR_bicubic/X2/0x2.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UsageError, match=r"0x2\.png: 9x9 does not fit .* 64x64 at x2"):
        prepare_tests(published, scale=2, out=tmp_path)


def test_a_missing_lr_file_is_named(published: Path, tmp_path: Path) -> None:
    (published / "LR_bicubic/X2/1x2.png").unlink()
    with pytest.raises(UsageError, match=r"1x2\.png: no such file"):
        prepare_tests(published, scale=2, out=tmp_path)


@pytest.mark.parametrize("broken", ["HR/1.png", "LR_bicubic/X2/1x2.png"])
def test_a_corrupt_test_image_is_skipped_and_named(
    published: Path, tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    (published / broken).write_bytes(b"no image")
    tests = prepare_tests(published, scale=2, out=tmp_path)
    assert tests.images == ("0",)
    assert len(tests.skipped) == 1
    assert f"skipped {broken}: cannot be read" in caplog.text


def test_test_images_too_small_to_be_measured_are_refused(photos: Path, tmp_path: Path) -> None:
    for file in list_images(photos):
        write_png(file, np.zeros((20, 40, 3), np.uint8))
    with pytest.raises(UsageError, match=r"none of 2 test images .* 40x20 is smaller than 32x32"):
        prepare_tests(photos, scale=2, out=tmp_path)


def test_files_of_one_name_and_two_formats_are_both_tested(photos: Path, tmp_path: Path) -> None:
    write_png(photos / "0.BMP", np.zeros((64, 64, 3), np.uint8))
    tests = prepare_tests(photos, scale=2, out=tmp_path / "tests")
    assert tests.images == ("0.BMP", "0.png", "1")
    assert [hr.shape[:2] for _, _, hr in load_tests(tests)] == [(64, 64), (80, 66), (64, 96)]


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
