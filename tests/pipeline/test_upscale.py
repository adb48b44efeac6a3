"""A bundle's model is used on pictures of any size; one bad picture stops nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.images import read_rgb
from pipeline.bundle import manifest
from pipeline.upscale import upscale as work
from pipeline.upscale.output import Output

Finished = Any  # the record of conftest.py
Command = Callable[..., Any]


@pytest.fixture
def photos(tmp_path: Path, once: Finished) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    source = next((once.bundle / "golden/lr").glob("*.png"))
    image = Image.open(source).convert("RGB").resize((150, 110))
    image.save(folder / "wide.jpg", quality=95)
    image.crop((0, 0, 33, 21)).convert("LA").save(folder / "small.png")
    return folder


def test_tiles_are_those_of_the_whole_picture(
    once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    for side, out in (("60", "tiled"), ("400", "whole")):
        words = (photos, "-o", tmp_path / out, "--target", "cpu", "--precision", "fp32")
        said = ended("upscale", once.bundle, *words, "--tile", side)
        assert said.code == 0, said.err
        assert re.search("tiles exact( but for rounding)?, margin", said.out)
        assert "not exact" not in said.out
    tiled, whole = (read_rgb(tmp_path / out / "wide.png").astype(int) for out in ("tiled", "whole"))
    assert tiled.shape == (220, 300, 3)
    assert np.abs(tiled - whole).max() <= 1
    assert np.abs(tiled - whole).mean() < 1e-3
    with Image.open(tmp_path / "tiled" / "small.png") as small:
        assert (small.mode, small.size) == ("LA", (66, 42))


def test_the_first_picture_that_is_cut_is_compared_with_one_piece(
    once: Finished, photos: Path, tmp_path: Path
) -> None:
    (photos / "wide.jpg").rename(photos / "then_wide.jpg")  # behind "small.png", which is one tile
    (photos / "small.png").rename(photos / "first_small.png")
    model = work.choose_model(once.bundle, "cpu", "fp32")
    made = work.upscale_all(
        once.bundle,
        model,
        work.list_pictures([photos], Output(tmp_path / "out")),
        Output(tmp_path / "out"),
        memory_bytes=2**31,
        side=60,
        notify=lambda done, whole: None,
    )
    levels = {one.source.stem: one.levels for one in made}
    assert levels["first_small"] is None
    assert levels["then_wide"] in (0, 1)


def test_one_bad_picture_is_told_and_the_others_are_made(
    once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    said = ended("upscale", once.bundle, photos, "-o", tmp_path / "out", "--tile", "80")
    assert said.code == 5
    assert "broken.png: cannot be read as an image" in said.err
    assert "1 of 3 images failed" in said.err
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"small.png", "wide.png"}


def test_files_of_others_are_replaced_only_when_that_is_asked(
    once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = ("upscale", once.bundle, photos, "-o", out, "--tile", "80")
    mine = (photos / "small.png").read_bytes()
    (out / "wide.png").write_bytes(mine)
    said = ended(*words)
    assert said.code == 5
    assert f"{out}/wide.png: is there, and was not made by upscale: --overwrite" in said.err
    assert "1 of 2 images failed" in said.err
    assert (out / "wide.png").read_bytes() == mine
    assert {file.name for file in out.iterdir()} == {"small.png", "wide.png"}
    assert ended(*words, "--overwrite").code == 0
    assert ended(*words).code == 0  # both are its own now
    with Image.open(out / "wide.png") as made:
        made.load()
        made.save(out / "wide.png")  # edited by another program: the user's
    assert ended(*words).code == 5


@pytest.mark.parametrize("there", ["empty", "folder", "link", "dangling", "partial"])
def test_whatever_lies_in_the_place_of_a_result_stays(
    there: str, once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.png"
    out.mkdir()
    place = out / ("wide.png.partial" if there == "partial" else "wide.png")
    mine.write_bytes(b"mine")
    if there in ("link", "dangling"):
        place.symlink_to(mine if there == "link" else tmp_path / "nowhere")
    elif there == "folder":
        place.mkdir()
    else:
        place.write_bytes(b"" if there == "empty" else b"mine")
    said = ended("upscale", once.bundle, photos, "-o", out, "--tile", "80")
    assert (said.code, "1 of 2 images failed" in said.err) == (5, True)
    assert (out / "small.png").is_file()
    assert mine.read_bytes() == b"mine"
    assert os.path.lexists(place)
    assert place.is_symlink() == (there in ("link", "dangling"))


def test_results_into_what_is_no_folder_are_refused(
    once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    (tmp_path / "out").write_text("mine")
    said = ended("upscale", once.bundle, photos, "-o", tmp_path / "out")
    assert (said.code, (tmp_path / "out").read_text()) == (2, "mine")


def test_what_cannot_be_done_is_one_line(
    once: Finished, finished: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    def refused(*words: object, bundle: Path = once.bundle) -> tuple[int, str]:
        said = ended("upscale", bundle, photos, "-o", tmp_path / "out", *words)
        return said.code, said.err

    code, said = refused("--target", "openvino")
    assert (code, "no model for 'openvino'" in said) == (2, True)
    code, said = refused("--target", "jetson")
    assert (code, "could only simulate it" in said) == (4, True)
    code, said = refused("--target", "cpu", "--tile", "20")
    assert (code, "too small for this net" in said) == (2, True)
    code, said = refused(photos / "small.png", "--target", "cpu")
    assert (code, "would both become small.png" in said) == (2, True)
    damaged = finished.bundle / manifest.read(finished.bundle).models[0].file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, said = refused(bundle=finished.bundle)
    assert (code, "is changed" in said) == (2, True)


def test_tiles_are_called_exact_or_not_but_never_both() -> None:
    files = {
        "file": "model/cpu-fp32/m",
        "size_bytes": 1,
        "options": {},
        "notes": (),
        "versions": {},
    }
    local = manifest.Model(
        target="cpu", precision="fp32", kind="measured", scale=2, multiple=1, margin=7,
        inexact_because="", **files,
    )  # fmt: skip
    everywhere = replace(local, inexact_because="Softmax: it looks at the whole image")
    said = {
        (model.inexact_because, levels): work.describe_tiles(model, levels)
        for model in (local, everywhere)
        for levels in (None, 0, 1, 39)
    }
    for (why, levels), text in said.items():
        exact = not why and levels in (None, 0, 1)
        assert text.startswith("tiles exact" if exact else "tiles not exact"), text
        assert ("up to" in text) == (not exact and levels is not None)
    assert "up to 39 levels from one piece" in said["", 39]
    assert said["", 1] == "tiles exact but for rounding, margin 7 LR pixels"


def test_results_are_of_the_format_that_is_asked_for(
    once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    words = ("--target", "cpu", "--precision", "fp32", "--tile", "400")
    asked = {"png": (), "webp": ("--format", "webp"), "jpeg": ("--format", "jpeg")}
    found = {}
    for name, option in asked.items():
        out = tmp_path / name
        for _ in range(2):  # it knows its own results, and replaces them
            said = ended("upscale", once.bundle, photos, "-o", out, *words, *option)
            assert said.code == 0, said.err
        found[name] = {file.name: Image.open(file) for file in out.iterdir()}
        assert ("JPEG holds no transparency" in said.err) == (name == "jpeg")
    assert {image.format for image in found["jpeg"].values()} == {"JPEG"}
    plain = np.array(found["png"]["wide.png"])
    assert np.array_equal(np.array(found["webp"]["wide.webp"]), plain)
    alpha = found["png"]["small.png"].convert("RGBA")
    assert np.array_equal(np.array(found["webp"]["small.webp"].convert("RGBA")), np.array(alpha))
    assert np.abs(np.array(found["jpeg"]["wide.jpg"]).astype(int) - plain).mean() < 4
    for file in (tmp_path / "webp/wide.webp", tmp_path / "jpeg/wide.jpg"):
        with Image.open(file) as image:
            image.load()
        image.save(file, comment=image.info.get("comment", b""), exif=image.getexif())
        format_ = "webp" if file.suffix == ".webp" else "jpeg"
        said = ended("upscale", once.bundle, photos, "-o", file.parent, *words, "--format", format_)
        assert (said.code, "was not made by upscale" in said.err) == (5, True)


def test_one_picture_goes_into_the_file_that_is_named(
    once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    words = ("upscale", once.bundle, photos / "wide.jpg", "--tile", "400", "-o")
    file = tmp_path / "new" / "large.webp"
    assert ended(*words, file).code == 0
    with Image.open(file) as image:
        assert (image.format, image.size) == ("WEBP", (300, 220))
    for option, what in {
        ("--format", "jpeg"): "is a file of format webp, --format asks for jpeg",
        ("--bits", "16"): "--bits 16: webp holds 8 bits a channel",
        ("--bits", "12"): "--bits: 12",
        ("--format", "tiff"): "--format: 'tiff'",
        (str(photos / "small.png"),): "is one file, for 2 pictures",
    }.items():
        said = ended(*words, file, *option)
        assert (said.code, what in said.err) == (2, True), said.err


def test_16_bits_are_what_the_net_gives_before_8_are_left(
    once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    words = ("upscale", once.bundle, photos / "wide.jpg", "--target", "cpu", "--precision", "fp32")
    assert ended(*words, "--tile", "60", "-o", tmp_path / "8.png").code == 0
    assert ended(*words, "--tile", "60", "-o", tmp_path / "16.png", "--bits", "16").code == 0
    deep, eight = sixteen_bits(tmp_path / "16.png"), np.array(Image.open(tmp_path / "8.png"))
    assert np.abs(deep / 257 - eight).max() <= 0.51
    assert len(np.unique(deep)) > 2 * 256  # 8 bits stretched to 16 have 256 levels


def sixteen_bits(file: Path) -> Any:
    """The samples of a PNG of 16 bits RGB."""
    from mipkd.core.deep_pixels import _samples

    with Image.open(file) as image:
        image.load()
        return _samples(image, file)[0].astype(float)


@pytest.mark.parametrize("verdict", ["FAIL", "INVALID", "PASS"])
def test_a_bundle_that_no_gate_passed_is_not_used_in_silence(
    verdict: str, once: Finished, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = work.check.check_recorded(once.bundle)
    why = "0.4 dB lost on one crop"
    gate = Gate("worst drop", "cpu int8", Outcome(verdict), 0.4, 0.1, "dB", why)
    found = replace(judged, gates=(gate,), outcome=Outcome(verdict))
    monkeypatch.setattr(work.check, "check_recorded", lambda bundle: found)
    caplog.set_level("INFO")
    work.choose_model(once.bundle, None, None)
    said = [(one.levelname, one.message) for one in caplog.records if "worst drop" in one.message]
    if verdict == "PASS":
        assert not said
        return
    ((level, message),) = said
    assert level == ("WARNING" if verdict == "FAIL" else "INFO")
    assert verdict in message
    assert "worst drop (cpu int8)" in message
    assert (why in message) == (verdict == "FAIL")
