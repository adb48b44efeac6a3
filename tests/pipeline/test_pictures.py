"""What a user's picture holds beside RGB is kept, or the picture is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mipkd.core.errors import UsageError
from pipeline.upscale.pictures import Picture, join_alpha, read_picture
from pipeline.upscale.png import PngBands
from pipeline.upscale.whole_files import WholeFile, is_ours

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def written(picture: Picture, file: Path) -> Image.Image:
    whole = join_alpha(picture, picture.rgb_HWC, picture.alpha_HW1)
    with PngBands(file, whole.shape[:2], picture.channels, picture.chunks) as out:
        for start in range(0, len(whole), 3):
            out.write(whole[start : start + 3])
    image = Image.open(file)
    image.load()
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_channels_are_kept(mode: str, tmp_path: Path) -> None:
    before = Image.fromarray(RGBA).convert(mode)
    before.save(tmp_path / "a.png")
    after = written(read_picture(tmp_path / "a.png"), tmp_path / "b.png")
    assert after.mode == mode
    assert np.array_equal(np.array(after), np.array(before))


def test_profile_and_exif_are_kept_and_the_picture_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    Image.fromarray(RGBA[..., :3]).save(
        tmp_path / "a.jpg", exif=exif, icc_profile=PROFILE, quality=95
    )
    after = written(read_picture(tmp_path / "a.jpg"), tmp_path / "b.png")
    assert after.size == (7, 5)
    assert after.info["icc_profile"] == PROFILE
    assert after.getexif()[0x010F] == "Maker"
    assert 0x0112 not in after.getexif()


def test_what_cannot_be_a_picture_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(RGBA[..., :3]), Image.fromarray(RGBA[::-1, :, :3])]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name, why in {
        "moving.webp": "2 frames",
        "broken.png": "cannot be read as an image",
        "absent.png": "no such file",
    }.items():
        with pytest.raises(UsageError, match=why):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_are_read_as_8_and_that_is_told(channels: int, tmp_path: Path) -> None:
    eight = RGBA[..., :channels]
    with PngBands(tmp_path / "deep.png", (7, 5), channels, {}, bits=16) as out:
        out.write(eight.astype(np.uint16) * 257)
    picture = read_picture(tmp_path / "deep.png")
    assert np.array_equal(join_alpha(picture, picture.rgb_HWC, picture.alpha_HW1), eight)
    assert picture.lost == ("16 bits a channel are read as 8: finer steps are lost",)


def test_words_of_16_bits_that_hold_12_are_told_too(tmp_path: Path) -> None:
    grey = np.linspace(3, 4095, 35).reshape(7, 5).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "raw.tif")
    picture = read_picture(tmp_path / "raw.tif")
    assert picture.rgb_HWC.max() == 255
    assert any("read as 12 bits" in one for one in picture.lost)


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_cmyk_is_read_as_rgb_and_that_is_told(ending: str, tmp_path: Path) -> None:
    inks = Image.new("CMYK", (6, 4), (255, 0, 0, 0))
    inks.save(tmp_path / f"print.{ending}")
    picture = read_picture(tmp_path / f"print.{ending}")
    assert np.abs(picture.rgb_HWC.astype(int) - (0, 255, 255)).max() <= 2
    assert "for want of a profile" in picture.lost[0]
    assert not picture.chunks
    # No profile of inks is at hand: one of RGB cannot be used, which must not stop the picture.
    inks.save(tmp_path / f"print.{ending}", icc_profile=PROFILE)
    picture = read_picture(tmp_path / f"print.{ending}")
    assert "for want of a profile" in picture.lost[0]
    assert not picture.profile


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_profile_and_exif_are_kept_in_what_is_made_as_a_whole(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray(RGBA[..., :3]).save(tmp_path / "a.jpg", exif=exif, icc_profile=PROFILE)
    picture, file = read_picture(tmp_path / "a.jpg"), tmp_path / "result"
    with WholeFile(file, kind, (7, 5), picture, overwrite=False, memory_bytes=2**20) as out:
        out.write(picture.rgb_HWC)
    assert is_ours(file)
    with Image.open(file) as after:
        assert after.info["icc_profile"] == PROFILE
        assert after.getexif()[0x010F] == "Maker"
    whole = file.read_bytes()
    for at in (30, len(whole) // 2, len(whole) - 1):  # one bit, and it is another's
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert not is_ours(file)


def test_what_a_format_or_the_memory_does_not_hold_is_refused(tmp_path: Path) -> None:
    picture = Picture(RGBA[..., :3], None, grey=False)
    for size, memory, why in (((20_000, 4), 2**30, "16383 a side"), ((4, 4), 10, "--memory")):
        with pytest.raises(UsageError, match=why):
            WholeFile(tmp_path / "a", "WEBP", size, picture, overwrite=False, memory_bytes=memory)
    assert list(tmp_path.iterdir()) == []


def test_half_a_picture_leaves_no_file(tmp_path: Path) -> None:
    def break_off() -> None:
        with PngBands(tmp_path / "a.png", (4, 4), 3, {}) as out:
            out.write(np.zeros((2, 4, 3), np.uint8))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        break_off()
    assert list(tmp_path.iterdir()) == []
