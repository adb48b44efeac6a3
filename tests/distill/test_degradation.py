"""LR by a chain of degradations: the same of one seed, of the size and as strong as asked."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from mipkd.core.images import (
    ByteArray,
    crop_to_multiple,
    downscale,
    psnr_y,
    read_rgb,
    write_png,
)
from mipkd.core.photos import open_photos
from mipkd.core.samples import sample_photos
from mipkd.distill.data import ImageKind, prepare_photos, prepare_tests
from mipkd.distill.degradation import BICUBIC, DegradationConfig, degrade

SECOND = DegradationConfig(chain="second-order")
NOTHING = {"blur": (0, 0), "resize": (1, 1), "noise": (0, 0), "jpeg": (100, 100)}


@pytest.fixture(scope="module")
def hr() -> ByteArray:
    photo = read_rgb(sample_photos()[0])[:122, :163]
    return np.ascontiguousarray(crop_to_multiple(photo, 4))


def test_one_seed_gives_the_same_image_and_another_one_another(hr: ByteArray) -> None:
    first = degrade(hr, 4, SECOND)
    assert first.shape == (30, 40, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, degrade(hr.copy(), 4, SECOND))
    other = SECOND.model_copy(update={"seed": 1})
    assert not np.array_equal(first, degrade(hr, 4, other))
    assert not np.array_equal(first, degrade(np.ascontiguousarray(hr[::-1]), 4, SECOND)[::-1])


@pytest.mark.parametrize("chain", ["first-order", "second-order"])
def test_each_step_takes_away_and_none_of_them_is_left_where_none_is_asked(
    hr: ByteArray, chain: str
) -> None:
    plain = downscale(hr, 2)

    def near(**changed: object) -> float:
        config = DegradationConfig.model_validate({"chain": chain, **NOTHING, **changed})
        return psnr_y(degrade(hr, 2, config), plain, border=2)

    clean = near()
    assert clean > 25  # a resize alone, by another kernel
    for name, strong in (
        ("blur", (3.0, 3.0)),
        ("resize", (0.15, 0.15)),
        ("noise", (25.0, 25.0)),
        ("jpeg", (10, 10)),
    ):
        assert near(**{name: strong}) < clean - 1, name


def test_the_second_time_makes_it_worse(hr: ByteArray) -> None:
    def near(chain: str) -> float:
        configs = (SECOND.model_copy(update={"chain": chain, "seed": n}) for n in range(12))
        scores = [psnr_y(degrade(hr, 4, one), downscale(hr, 4), border=4) for one in configs]
        return float(np.mean(scores))

    assert near("second-order") < near("first-order")


def test_ends_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="lower end comes first"):
        DegradationConfig(noise=(30, 1))


def test_photos_and_test_images_are_degraded_once_and_their_own_lr_is_kept(
    hr: ByteArray, tmp_path: Path
) -> None:
    own = np.ascontiguousarray(hr[::2, ::2])
    for file, image in (("a.png", hr), ("b.png", np.ascontiguousarray(hr[::-1])), ("bx2.png", own)):
        (tmp_path / "given").mkdir(exist_ok=True)
        write_png(tmp_path / "given" / file, image)
    given, kind = tmp_path / "given", ImageKind(degrade=SECOND.for_scale(2))
    stores = [tmp_path / name for name in ("one", "two", "tests")]
    for store in stores:
        store.mkdir()
    one, two = (prepare_photos(given, scale=2, patch=8, out=s, kind=kind) for s in stores[:2])
    assert one.sha256 == two.sha256
    assert one.lr_from == "partly degraded"
    assert np.array_equal(open_photos(one)[0].lr_HWC, degrade(hr, 2, SECOND))
    assert np.array_equal(open_photos(one)[1].lr_HWC, own)
    tests = prepare_tests(given, scale=2, out=stores[2], kind=kind)
    assert np.array_equal(read_rgb(tests.lr_file(tests.images[0])), degrade(hr, 2, SECOND))
    assert BICUBIC.for_scale(2) is None
