"""What a user's picture holds beside RGB is kept, or the picture is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mipkd.core.errors import UsageError
from pipeline.upscale.pictures import Picture, join_alpha, read_picture
from pipeline.upscale.png import PngBands

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


def test_what_would_be_lost_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 65536, (4, 4), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(RGBA[..., :3]).convert("CMYK").save(tmp_path / "print.jpg")
    frames = [Image.fromarray(RGBA[..., :3]), Image.fromarray(RGBA[::-1, :, :3])]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    (tmp_path / "broken.png").write_bytes((tmp_path / "deep.png").read_bytes()[:60])
    for name, why in {
        "deep.png": "16",
        "print.jpg": "CMYK",
        "moving.webp": "2 frames",
        "broken.png": "cannot be read as an image",
        "absent.png": "no such file",
    }.items():
        with pytest.raises(UsageError, match=why):
            read_picture(tmp_path / name)


def test_half_a_picture_leaves_no_file(tmp_path: Path) -> None:
    def break_off() -> None:
        with PngBands(tmp_path / "a.png", (4, 4), 3, {}) as out:
            out.write(np.zeros((2, 4, 3), np.uint8))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        break_off()
    assert list(tmp_path.iterdir()) == []
