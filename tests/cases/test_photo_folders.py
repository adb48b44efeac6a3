"""Folders as people have them: phones', published sets', odd names, deep pixels, huge headers."""

from __future__ import annotations

import json
import os
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mipkd.core import folders, names
from mipkd.core.errors import UsageError
from mipkd.core.folders import list_images
from mipkd.core.image_headers import MOST_PIXELS, pixels_in
from mipkd.core.image_sets import find_set, hash_folder
from mipkd.core.images import downscale, read_photo, read_rgb, resize_bicubic
from mipkd.core.photos import open_photos
from mipkd.core.records import Photos
from mipkd.distill.data import load_tests, prepare_photos, prepare_tests
from pipeline import cli
from pipeline.upscale.pictures import read_picture

HR = (48, 64)


def draw(file: Path, seed: int, size: tuple[int, int] = HR) -> np.ndarray:
    """A smooth image in a file, whose folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    image = resize_bicubic(coarse, size)
    Image.fromarray(image).save(file)
    return image


def draw_pair(
    hr: Path, lr: Path, seed: int, scale: int = 2, size: tuple[int, int] = HR
) -> np.ndarray:
    """An HR image and an LR one that is not MATLAB's bicubic, so that its use can be seen."""
    image = draw(hr, seed, size)
    lr.parent.mkdir(parents=True, exist_ok=True)
    small = 255 - downscale(image, scale)
    Image.fromarray(small).save(lr)
    return small


def ended(*words: object) -> Any:
    """What a command said, run in this process."""
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def trained_on(folder: Path, tmp_path: Path, scale: int = 2) -> Photos:
    out = tmp_path / "store"
    out.mkdir(exist_ok=True)
    return prepare_photos(folder, scale=scale, patch=8, out=out)


def test_a_phones_folders_are_read_and_what_systems_keep_there_is_not(tmp_path: Path) -> None:
    root = tmp_path / "DCIM"
    for number, place in enumerate(("100APPLE/IMG_1.jpg", "101APPLE/IMG_1.jpg", "top.png")):
        draw(root / place, number)
    for hidden in ("__MACOSX/a.png", "@eaDir/b.png", ".thumbnails/c.png", "100APPLE/._IMG_1.jpg"):
        draw(root / hidden, 9)
    tests = prepare_tests(root, scale=2, out=tmp_path / "tests")
    assert tests.images == ("100APPLE__IMG_1", "101APPLE__IMG_1", "top")
    assert [p.name for p in open_photos(trained_on(root, tmp_path))] == list(tests.images)
    assert len(list_images(root)) == 3


def test_links_are_followed_once(tmp_path: Path) -> None:
    draw(tmp_path / "all/a/1.png", 0)
    draw(tmp_path / "elsewhere/2.png", 1)
    (tmp_path / "all/a/loop").symlink_to(tmp_path / "all")
    (tmp_path / "all/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all/again.png").symlink_to(tmp_path / "all/a/1.png")
    found = folders.walk_images(tmp_path / "all")
    assert [str(f.relative_to(tmp_path / "all")) for f in found.files] == ["a/1.png", "more/2.png"]
    assert [(str(one.file), one.reason) for one in found.left_out] == [("again.png", "duplicate")]


def test_the_folder_of_a_run_among_the_photos_is_no_part_of_them(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 0)
    draw(tmp_path / "runs/one/tests/hr/b.png", 1)
    (tmp_path / "runs/one/journal.jsonl").touch()
    assert [f.name for f in list_images(tmp_path)] == ["a.png"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 0)
    os.mkfifo(tmp_path / "b.png")
    found = folders.walk_images(tmp_path)
    assert [f.name for f in found.files] == ["a.png"]
    assert folders.count_reasons(found.left_out) == {"unreadable": 1}


PAIRS = {  # HR, LR
    "suffix": ("{0}_HR.png", "{0}_LR.png"),
    "lower case": ("{0}_hr.png", "{0}_lr.png"),
    "prefix": ("HR_{0}.png", "LR_{0}.png"),
    "capitals": ("{0}HR.png", "{0}LR.png"),
    "scale": ("{0}.png", "{0}x2.png"),
    "scale apart": ("{0}.png", "{0}_X2.png"),
    "LR alone is marked": ("{0}.png", "{0}_LR.png"),
    "HR alone is marked": ("{0}_HR.png", "{0}.png"),
    "SelfExSR": ("img_{0}_SRF_2_HR.png", "img_{0}_SRF_2_LR.png"),
    "GT": ("{0}_gt.png", "{0}_lrx2.png"),
    "another format": ("{0}_HR.png", "{0}_LR.bmp"),
    "quality": ("{0}_gt.png", "{0}_lq.png"),
    "brackets": ("{0} (HR).png", "{0} (LR).png"),
    "dots": ("{0}.HR.png", "{0}.LR.png"),
}
LAYOUTS = {  # HR folder and file, LR folder and file
    "EDSR": ("HR", "{0}.png", "LR_bicubic/X2/{0}x2.png"),
    "lower x": ("HR", "{0}.png", "LR_bicubic/x2/{0}.png"),
    "BasicSR": ("GTmod12", "{0}.png", "LRbicx2/{0}.png"),
    "DIV2K": ("DIV2K_valid_HR", "{0}.png", "DIV2K_valid_LR_bicubic/X2/{0}x2.png"),
    "RCAN": ("HR/Set5/x2", "{0}_HR_x2.png", "LR/LRBI/Set5/x2/{0}_LRBI_x2.png"),
    "KAIR": ("HR/x2", "{0}.png", "LR/x2/{0}.png"),
    "plain": ("hr", "{0}.png", "lr/{0}.png"),
    "quality": ("GT", "{0}.png", "LQ/{0}.png"),
    "in words": ("ground_truth", "{0}.png", "low_resolution/{0}.png"),
    "scale last": ("hr", "{0}.png", "lr_2x/{0}.png"),
    "original": ("original", "{0}.png", "image_SRF_2/{0}.png"),
    "original, marked": ("original", "img_{0}.png", "image_SRF_2/img_{0}_SRF_2_LR.png"),
    "a name that ends like a scale": ("hr", "linux{0}.png", "lr/x2/linux{0}.png"),
}


@pytest.mark.parametrize("named", PAIRS)
def test_pairs_in_one_folder_are_known_by_name_and_size(tmp_path: Path, named: str) -> None:
    high, low = PAIRS[named]
    lows = [
        draw_pair(tmp_path / "set" / high.format(n), tmp_path / "set" / low.format(n), n)
        for n in (1, 2)
    ]
    tests = prepare_tests(tmp_path / "set", scale=2, out=tmp_path / "tests")
    assert [hr.shape[:2] for _, _, hr in load_tests(tests)] == [HR, HR]
    assert tests.lr_from == "published"
    for (_, lr, _), expected in zip(load_tests(tests), lows, strict=True):
        assert np.array_equal(lr, expected)
    photos = open_photos(trained_on(tmp_path / "set", tmp_path))
    assert [photo.hr_HWC.shape[:2] for photo in photos] == [HR, HR]
    assert np.array_equal(photos[0].lr_HWC, lows[0])
    other = prepare_tests(tmp_path / "set", scale=3, out=tmp_path / "other")
    assert (other.lr_from, len(other.images)) == ("bicubic", 2)
    assert other.left_out == {"LR of another scale": 2}


@pytest.mark.parametrize("given", ["root", "HR"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_are_known_from_their_root_and_their_hr(
    tmp_path: Path, layout: str, given: str
) -> None:
    folder, high, low = LAYOUTS[layout]
    root = tmp_path / "set"
    lows = [draw_pair(root / folder / high.format(n), root / low.format(n), n) for n in (1, 2)]
    source = root if given == "root" else root / folder
    tests = prepare_tests(source, scale=2, out=tmp_path / "tests")
    assert tests.lr_from == "published"
    found = load_tests(tests)
    assert [hr.shape[:2] for _, _, hr in found] == [HR, HR]
    assert all(np.array_equal(lr, low) for (_, lr, _), low in zip(found, lows, strict=True))
    assert trained_on(source, tmp_path).lr_from == "published"
    before = hash_folder(source)
    draw(root / low.format(1), 5, (24, 32))
    assert hash_folder(source) != before


def test_of_several_scales_only_the_one_asked_for_is_taken(tmp_path: Path) -> None:
    for scale in (2, 4):
        place = tmp_path / f"set/HR/x{scale}/a.png", tmp_path / f"set/LR/x{scale}/a.png"
        draw_pair(*place, seed=scale, scale=scale, size=(64, 96))
    tests = prepare_tests(tmp_path / "set", scale=4, out=tmp_path / "tests")
    assert (len(tests.images), tests.lr_from) == (1, "published")
    assert tests.left_out == {"HR for another scale": 1, "LR of another scale": 1}
    assert tests.skipped == ()


def test_selfexsr_has_each_image_once_and_results_of_methods_are_none(tmp_path: Path) -> None:
    root = tmp_path / "Set5"
    draw(root / "original/baby.png", 0, (50, 66))
    for scale in (2, 3):
        folder = root / f"image_SRF_{scale}"
        name = f"img_001_SRF_{scale}"
        draw_pair(folder / f"{name}_HR.png", folder / f"{name}_LR.png", 0, scale)
        draw(folder / f"{name}_bicubic.png", 0)
    found = find_set(root, 2)
    assert [m.hr.name for m in found.members] == ["img_001_SRF_2_HR.png"]
    assert found.members[0].lr == root / "image_SRF_2/img_001_SRF_2_LR.png"
    assert [m.hr.name for m in find_set(root, 4).members] == ["baby.png"]


@pytest.mark.parametrize("given", ["", "GTmod12"])
def test_basicsrs_original_gives_way_to_the_cropped_images(tmp_path: Path, given: str) -> None:
    draw(tmp_path / "original/a.png", 0, (50, 67))
    for scale in (2, 4):
        draw_pair(tmp_path / "GTmod12/a.png", tmp_path / f"LRbicx{scale}/a.png", 0, scale)
    found = find_set(tmp_path / given, 2)
    assert [m.hr for m in found.members] == [tmp_path / "GTmod12/a.png"]
    assert found.members[0].lr == tmp_path / "LRbicx2/a.png"
    assert [m.lr for m in find_set(tmp_path / "original", 2).members] == [None]


def test_lr_images_of_another_degradation_give_way_to_bicubic(tmp_path: Path) -> None:
    for how in ("unknown", "bicubic", "mild"):
        draw_pair(tmp_path / "D_HR/1.png", tmp_path / f"D_LR_{how}/X2/1x2.png", 1)
    found = find_set(tmp_path, 2)
    assert found.members[0].lr == tmp_path / "D_LR_bicubic/X2/1x2.png"
    assert folders.count_reasons(list(found.left_out)) == {"another LR of a pair": 2}


def test_names_that_only_look_like_pairs_are_photos(tmp_path: Path) -> None:
    """No partner, or one of a size that no scale gives."""
    for number, name in enumerate(("lonely_LR", "lonelyx4", "IMG_1", "IMG_1x2", "lone_SR")):
        draw(tmp_path / f"{name}.png", number)
    assert len(find_set(tmp_path, 2).members) == 5


def test_an_lr_image_that_does_not_fit_is_left_out_and_never_taken_for_hr(tmp_path: Path) -> None:
    draw_pair(tmp_path / "set/1_HR.png", tmp_path / "set/1_LR.png", 1)
    draw(tmp_path / "set/2_HR.png", 2)
    draw(tmp_path / "set/2_LR.png", 2, (24, 31))
    tests = prepare_tests(tmp_path / "set", scale=2, out=tmp_path / "tests")
    assert tests.images == ("1_HR", "2_HR")
    assert tests.lr_from == "mixed"
    assert tests.left_out == {"LR whose size does not fit": 1}


def test_what_is_left_out_is_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "find_spec", lambda name: None)  # no pillow_heif
    root = tmp_path / "photos"
    draw(root / "a.png", 0)
    (root / "b.png").write_bytes((root / "a.png").read_bytes())
    draw(root / "small.png", 1, (9, 9))
    (root / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    for name in ("1.HEIC", "2.heic", "IMG_1.MOV", "IMG_2.DNG", "c.gif", "notes.txt"):
        (root / name).touch()
    pages = [Image.fromarray(draw(root / "p.tif", seed)) for seed in (3, 4, 5)]
    pages[0].save(root / "p.tif", save_all=True, append_images=pages[1:])
    store = trained_on(root, tmp_path)
    assert store.left_out == {
        "HEIC without a reader": 2,
        "further page": 2,
        "duplicate": 1,
        "other format": 1,
        "raw": 1,
        "too small": 1,
        "unreadable": 1,
        "video": 1,
    }
    assert store.count == 2
    last = caplog.records[-1].getMessage()
    assert "left out: 2 HEIC without a reader (pip install 'mipkd-pipeline[heif]'), " in last


def test_heic_is_read_where_its_reader_is_and_named_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs the extra `heif`")
    image = Image.fromarray(draw(tmp_path / "a.png", 0))
    heif.from_pillow(image).save(tmp_path / "IMG_1.HEIC", quality=95)
    heif.from_pillow(image).save(tmp_path / "IMG_2.jpg", format="HEIF", quality=95)
    for file in (tmp_path / "IMG_1.HEIC", tmp_path / "IMG_2.jpg"):
        assert np.abs(read_rgb(file).astype(int) - np.array(image)).mean() < 12
    assert len(list_images(tmp_path)) == 3
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UsageError, match="HEIC, whose reader is not installed") as error:
        read_rgb(tmp_path / "IMG_2.jpg")
    assert "pip install" in error.value.hint


def png16(file: Path, values_HW3: np.ndarray) -> None:
    """A PNG of 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    height, width, channels = values_HW3.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HW3)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tif16(file: Path, values: np.ndarray, **more: Any) -> None:
    tifffile = pytest.importorskip("tifffile")
    colour = "rgb" if values.ndim == 3 else "minisblack"
    tifffile.imwrite(file, values.astype(np.uint16), photometric=colour, **more)


@pytest.mark.parametrize("how", ["png", "tif", "big-endian", "deflate", "grey", "grey png"])
@pytest.mark.parametrize(("bits", "said"), [(10, True), (12, True), (16, False)])
def test_bits_that_were_not_spread_over_16_are_not_black(
    tmp_path: Path, how: str, bits: int, said: bool
) -> None:
    full = 2**bits - 1
    values = np.random.default_rng(0).integers(0, full + 1, (20, 30, 3))
    values[0, 0] = full
    values = values[..., 0] if how.startswith("grey") else values
    file = tmp_path / ("a.png" if how.endswith("png") else "a.tif")
    if how == "png":
        png16(file, values)
    elif how == "grey png":
        Image.fromarray(values.astype(np.uint16)).save(file)
    else:
        more = {"big-endian": {"byteorder": ">"}, "deflate": {"compression": "zlib"}}
        tif16(file, values, **more.get(how, {}))
    read = read_photo(file)
    expected = np.rint(values * (255 / full)).astype(np.uint8)
    rgb = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2)
    assert np.array_equal(read.rgb_HWC, rgb)
    assert (f"read as {bits} bits" in read.note) == said


def test_a_stated_greatest_sample_is_taken_at_its_word(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9000, (20, 30))
    tif16(tmp_path / "a.tif", values, extratags=[(281, "H", 1, 16383, True)])
    read = read_photo(tmp_path / "a.tif")
    assert np.array_equal(read.rgb_HWC[..., 0], np.rint(values * (255 / 16383)))
    assert read.note == ""


@pytest.mark.parametrize("spread", [257, 256])
def test_a_dark_photo_that_had_8_bits_stays_dark(tmp_path: Path, spread: int) -> None:
    dark = np.random.default_rng(0).integers(0, 12, (20, 30, 3))
    png16(tmp_path / "a.png", dark * spread)
    read = read_photo(tmp_path / "a.png")
    assert np.array_equal(read.rgb_HWC, dark)
    assert read.note == ""


def test_an_assumed_range_is_said_with_the_files_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (*HR, 3))
    (tmp_path / "set").mkdir()
    tif16(tmp_path / "set/scan.tif", values)
    prepare_tests(tmp_path / "set", scale=2, out=tmp_path / "tests")
    assert "scan.tif: the brightest of its 16-bit samples is" in caplog.text


def test_16_bits_with_alpha_lie_over_white(tmp_path: Path) -> None:
    png16(tmp_path / "a.png", np.full((4, 5, 4), (9000, 9000, 9000, 0)))
    assert np.unique(read_rgb(tmp_path / "a.png")).tolist() == [255]


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """A header that tells of 100,000 x 100,000 pixels."""
    png16(tmp_path / "huge.png", np.zeros((1, 1, 3)))
    data = bytearray((tmp_path / "huge.png").read_bytes())
    data[16:25] = struct.pack(">IIB", 100_000, 100_000, 8)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "huge.png").write_bytes(bytes(data))
    return tmp_path / "huge.png"


@pytest.mark.parametrize("read", [read_rgb, read_picture])
def test_a_huge_image_is_refused_from_its_header(huge: Path, read: Callable[[Path], Any]) -> None:
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"100000x100000 pixels are more than 500 megapixels"):
        read(huge)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_200_megapixels_are_not_too_many(huge: Path) -> None:
    data = bytearray(huge.read_bytes())
    data[16:24] = struct.pack(">II", 20_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    huge.write_bytes(bytes(data))
    assert pixels_in(huge) == 200_000_000 < MOST_PIXELS


ODD_NAMES = (
    b"caf\xe9.png",
    "emoji \U0001f600.png".encode(),
    b"two\nlines.png",
    b"quo'te\".png",
    b"a" * 251 + b".png",
    b"-dash.png",
    b"100%.png",
    b"sub/same.png",
    b"same.png",
    b"same.bmp",
    b"sub2/\xff\xfe.png",
)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = tmp_path / os.fsdecode(b"ph\xe9")
    for seed, name in enumerate(ODD_NAMES):
        draw(folder / os.fsdecode(name), seed)
    return folder


def test_every_name_becomes_one_that_can_be_written_and_printed(odd: Path, tmp_path: Path) -> None:
    tests = prepare_tests(odd, scale=2, out=tmp_path / "tests")
    assert len(set(tests.images)) == len(ODD_NAMES) == len(load_tests(tests))
    for name in (*tests.images, tests.source):
        assert names.printable(name) == name
        assert len(name.encode()) <= 255 - len(".png.partial")
        json.dumps(name, ensure_ascii=False).encode()
    assert {"caf%E9", "-dash", "sub__same", "same.png", "same.bmp"} <= set(tests.images)


def test_names_are_unique_where_files_differ_by_case_or_accent_alone() -> None:
    found = names.unique_names([Path(n) for n in ("a.png", "A.png", "é.png", "é.png")])
    assert len({name.casefold() for name in found}) == 4


def test_a_run_and_upscale_take_any_name(odd: Path, tmp_path: Path) -> None:
    photos = tmp_path / os.fsdecode(b"d\xe4ta")
    for seed in range(3):
        draw(photos / os.fsdecode(b"\xe4%d.png" % seed), 100 + seed)
    model = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
    said = ended(
        *("run", "--model", model, "--target", "cpu", "--precision", "fp32"),
        *("--data", photos, "--val", odd, "--out", tmp_path / "run"),
        *("--set", "distill.patch=16", "--set", "calibrate.count=4", "--set", "calibrate.size=16"),
        *("--set", "bench.sizes=[[16, 16]]", "--set", "bench.min_time_s=0.02"),
        *("--set", "bench.warmup_s=0.01", "--set", "bench.max_drift=9"),
        *("--set", "bench.max_busy=1"),
    )
    assert said.exit_code in (0, 6, 7), said.stderr
    results = (tmp_path / "run/report/latest/results.json").read_text()
    assert "\\udc" not in results.replace("\\ud83d\\ude00", "")  # the emoji's two halves
    assert len(json.loads(results)["tests"]["images"]) == len(ODD_NAMES)
    made = ended("upscale", tmp_path / "run/bundle", odd, "-o", tmp_path / "up")
    assert made.exit_code == 0, made.stderr
    assert "caf\\xe9.png" in made.stdout
    assert len(list((tmp_path / "up").rglob("*.png"))) == len(ODD_NAMES)
    for _ in range(2):  # the second time there are results among the pictures
        assert ended("upscale", tmp_path / "run/bundle", odd, "-o", odd / "up").exit_code == 0
    assert len(list((odd / "up").rglob("*.png"))) == len(ODD_NAMES)


def test_a_picture_of_16_bits_is_read_in_8_and_says_so(tmp_path: Path) -> None:
    tif16(tmp_path / "a.tif", np.full((20, 30, 3), 40_000))
    assert read_picture(tmp_path / "a.tif").lost


def test_a_phones_jpeg_with_a_second_image_is_one_picture(tmp_path: Path) -> None:
    image = Image.fromarray(draw(tmp_path / "a.png", 0))
    image.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[image])
    assert read_photo(tmp_path / "a.jpg").further_pages == 0
    assert read_picture(tmp_path / "a.jpg").channels == 3
