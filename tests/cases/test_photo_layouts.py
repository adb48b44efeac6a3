"""LR images by any name, an LR folder given itself, and rarer pixels of 16 bits."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mipkd.core.errors import UsageError
from mipkd.core.image_sets import find_set
from mipkd.core.images import downscale, read_photo, resize_bicubic

NAMES = ("bird", "head", "woman")


def draw(file: Path, seed: int, scale: int = 1, size: tuple[int, int] = (96, 128)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    image = resize_bicubic(coarse, size)
    Image.fromarray(downscale(image, scale) if scale > 1 else image).save(file)


def draw_set(root: Path, hr: str, lr: str, scale: int = 4) -> None:
    for seed, name in enumerate(NAMES):
        draw(root / f"{hr.format(name)}.png", seed)
        draw(root / f"{lr.format(name)}.png", seed, scale)


FOLDERS = (
    ("H", "L"), ("HQ", "LQ"), ("GT", "LQ"), ("gt", "input"), ("trainH", "trainL"),
    ("testH", "testL"), ("validH", "validL"), ("clean", "noisy"), ("target", "input"),
    ("ground_truth", "low_resolution"), ("HR", "X4"), ("HR", "4x"), ("HR", "bicubic_4x"),
    ("HR", "LR/4"), ("HR", "LR/bicubic/x4"), ("hr", "lr_4x"), ("a/sharp", "a/blurred"),
)  # fmt: skip
STEMS = (
    ("{}_gt", "{}_lq"), ("{}_high", "{}_low"), ("{}_H", "{}_L"), ("{}_target", "{}_input"),
    ("{}", "{}_bicubic_x4"), ("{}.HR", "{}.LR"), ("{} (HR)", "{} (LR)"),
    ("target_{}", "input_{}"), ("H/{}_H", "L/{}_L"), ("HR/{}", "X4/{}x4"),
)  # fmt: skip


@pytest.mark.parametrize(("hr", "lr"), [*((f"{a}/{{}}", f"{b}/{{}}") for a, b in FOLDERS), *STEMS])
def test_an_lr_image_is_never_measured_as_hr(tmp_path: Path, hr: str, lr: str) -> None:
    draw_set(tmp_path, hr, lr)
    pairs = [(m.hr, m.lr) for m in find_set(tmp_path, 4).members]
    assert sorted(pairs) == [
        (tmp_path / f"{hr.format(n)}.png", tmp_path / f"{lr.format(n)}.png") for n in NAMES
    ]


def test_of_two_unnamed_scales_the_one_asked_for_is_taken(tmp_path: Path) -> None:
    draw_set(tmp_path, "big/{}", "half/{}", 2)
    draw_set(tmp_path, "big/{}", "quarter/{}", 4)
    for scale, folder in ((2, "half"), (4, "quarter")):
        found = find_set(tmp_path, scale).members
        assert [m.lr and m.lr.parent.name for m in found] == [folder] * 3


def test_photos_of_one_name_are_no_pairs_unless_sizes_and_content_agree(tmp_path: Path) -> None:
    for seed, name in enumerate(NAMES):
        draw(tmp_path / "clean" / f"{name}.png", seed)
        draw(tmp_path / "noisy" / f"{name}.png", seed)  # of the same size
        draw(tmp_path / "H" / f"DSC_{seed}.png", 10 + seed)
        draw(tmp_path / "L" / f"DSC_{seed}.png", 20 + seed, 2)  # another photo
    assert [m.lr for m in find_set(tmp_path, 2).members] == [None] * 12


@pytest.mark.parametrize("lr", ["LRbicx4", "LR_bicubic/X4", "LR", "LQ", "LR/4"])
def test_a_sets_lr_folder_is_refused_beside_its_hr_and_named_without(
    tmp_path: Path, lr: str, caplog: pytest.LogCaptureFixture
) -> None:
    draw_set(tmp_path, "HR/{}", f"{lr}/{{}}")
    with pytest.raises(UsageError, match="holds the LR images") as refused:
        find_set(tmp_path / lr, 4)
    assert str(tmp_path) in refused.value.hint
    (tmp_path / "HR").rename(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        assert len(find_set(tmp_path / lr, 4).members) == 3
    assert "holds LR images by its name" in caplog.text


def png16(file: Path, values: np.ndarray) -> None:
    """A PNG of 16 bits: grey and alpha, or RGB and alpha."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 4: 6}[channels], 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
    with file.open("ab") as opened:
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            opened.write(struct.pack(">I", len(data)) + kind + data)
            opened.write(struct.pack(">I", zlib.crc32(kind + data)))


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("alpha", [4095, 65535])
def test_alpha_beside_12_bits_in_16_may_have_either_range(
    tmp_path: Path, channels: int, alpha: int
) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (20, 30, channels))
    values[0, 0], values[..., -1] = 4095, alpha
    png16(tmp_path / "a.png", values)
    read = read_photo(tmp_path / "a.png")
    assert "read as 12 bits" in read.note
    expected = np.rint(values[..., :-1] * (255 / 4095))
    assert np.array_equal(read.rgb_HWC, np.broadcast_to(expected, read.rgb_HWC.shape))


def test_16_bits_whose_zero_is_white_are_turned(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    expected = 255 - np.rint(values * (255 / 65535))
    assert np.array_equal(read_photo(tmp_path / "a.tif").rgb_HWC[..., 0], expected)


def test_16_bits_in_planes_are_refused_by_name(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    planes = np.zeros((3, 20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(UsageError, match=r"a.tif.*lie in planes; save it chunky"):
        read_photo(tmp_path / "a.tif")
