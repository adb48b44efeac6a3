"""Bicubic to the last bit, the papers' metrics, and files as people have them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from mipkd.core.errors import UsageError
from mipkd.core.images import (
    crop_to_multiple,
    downscale,
    list_images,
    luma,
    psnr_y,
    read_rgb,
    resize_bicubic,
    ssim_y,
    write_png,
)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["baby", "bird", "butterfly", "head", "woman"])
def test_lr_equals_the_published_files_to_the_last_bit(assets: Path, name: str, scale: int) -> None:
    hr = read_rgb(assets / f"test/Set5/HR/{name}.png")
    published = read_rgb(assets / f"test/Set5/LR_bicubic/X{scale}/{name}x{scale}.png")
    assert np.array_equal(downscale(crop_to_multiple(hr, scale), scale), published)


def test_bicubic_upscaling_of_set5_has_the_published_figures(assets: Path) -> None:
    psnr, ssim = [], []
    for file in list_images(assets / "test/Set5/HR"):
        hr = crop_to_multiple(read_rgb(file), 4)
        lr = read_rgb(assets / f"test/Set5/LR_bicubic/X4/{file.stem}x4.png")
        sr = resize_bicubic(lr, hr.shape[:2])
        psnr.append(psnr_y(sr, hr, border=4))
        ssim.append(ssim_y(sr, hr, border=4))
    assert np.mean(psnr) == pytest.approx(28.43, abs=0.01)
    assert np.mean(ssim) == pytest.approx(0.8109, abs=0.001)


def test_ssim_is_the_mean_over_valid_gaussian_windows() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    b = np.clip(a + rng.integers(-9, 9, a.shape), 0, 255).astype(np.uint8)
    x = np.arange(-5, 6)
    line = np.exp(-(x**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def local(image: np.ndarray) -> np.ndarray:
        return (sliding_window_view(image, (11, 11)) * window).sum((-1, -2))

    ya, yb = luma(a), luma(b)
    ma, mb = local(ya), local(yb)
    va, vb = local(ya * ya) - ma**2, local(yb * yb) - mb**2
    cov = local(ya * yb) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim_y(a, b, border=0) == pytest.approx(expected.mean(), abs=1e-9)


def test_white_and_black_span_16_to_235() -> None:
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    assert luma(ends) == pytest.approx(np.array([[16.0, 235.0]]))


def test_equal_images_have_a_finite_psnr() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    assert psnr_y(image, image, border=2) == 100.0


def test_an_image_smaller_than_the_window_is_named_with_its_size() -> None:
    image = np.zeros((12, 14, 3), np.uint8)
    with pytest.raises(UsageError, match="14x12"):
        ssim_y(image, image, border=4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (9, 5), (255, 255, 255)).convert(mode).save(file)
    read = read_rgb(file)
    assert read.shape == (5, 9, 3)
    assert read.min() == 255


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 32896, np.uint16)).save(tmp_path / "a.png")
    assert np.unique(read_rgb(tmp_path / "a.png")).tolist() == [128]


def test_a_rotated_photo_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_rgb(tmp_path / "a.jpg").shape == (8, 4, 3)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"a\.png: cannot be read"):
        read_rgb(tmp_path / "a.png")


def test_folders_that_hold_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image in it"):
        list_images(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        list_images(tmp_path / "absent")
