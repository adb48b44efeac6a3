"""Calibration sees bright and dark, flat and busy parts of training photos, by seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration.patches import as_batches, choose
from mipkd.core.errors import UsageError
from mipkd.core.photos import PhotoWriter
from mipkd.core.records import Photos


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Eight photos; a twentieth of three is white and a twentieth of three black."""
    folder = tmp_path / "store"
    folder.mkdir()
    writer, rng = PhotoWriter(folder), np.random.default_rng(0)
    for index in range(8):
        hr = rng.integers(60, 180, (192, 192, 3), dtype=np.uint8)
        if index < 3:
            hr[:86, :86] = 255
        elif index < 6:
            hr[-86:, -86:] = 0
        writer.add(f"{index}.png", hr, np.ascontiguousarray(hr[::2, ::2]))
    writer.close()
    return Photos(folder=folder, sha256="", source="photos", scale=2, count=8)


def test_patches_are_saved_and_come_back_as_batches(photos: Photos, tmp_path: Path) -> None:
    patches = choose(photos, count=8, size=24, seed=0, out=tmp_path)
    saved = np.load(patches.file)
    assert (saved.shape, saved.dtype) == ((8, 24, 24, 3), np.uint8)
    assert (patches.count, patches.size) == (8, (24, 24))
    first = as_batches(patches)[0]
    assert (first.shape, first.dtype) == ((1, 3, 24, 24), np.float32)
    assert np.array_equal(np.rint(first[0].transpose(1, 2, 0) * 255), saved[0])


def test_a_seed_gives_the_same_patches_and_another_seed_others(
    photos: Photos, tmp_path: Path
) -> None:
    one, same, other = (choose(photos, count=8, size=24, seed=s, out=tmp_path) for s in (3, 3, 4))
    assert one.sha256 == same.sha256
    assert one.sha256 != other.sha256


def test_the_bright_and_the_dark_parts_that_occur_are_among_them(
    photos: Photos, tmp_path: Path
) -> None:
    for seed in range(3):
        means = np.load(choose(photos, count=16, size=24, seed=seed, out=tmp_path).file).mean(
            (1, 2, 3)
        )
        assert means.max() > 160
        assert means.min() < 80


def test_photos_without_room_for_a_patch_are_refused_with_a_way_out(
    photos: Photos, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no photo of photos has 200 LR pixels") as caught:
        choose(replace(photos, source="photos"), count=4, size=200, seed=0, out=tmp_path)
    assert "calibrate.size=100" in caught.value.hint
