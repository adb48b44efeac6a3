"""A bundle's model is used on pictures of any size; one bad picture stops nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mipkd.core.images import read_rgb
from pipeline.bundle import manifest

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
        assert "tiles exact, margin" in said.out
    tiled, whole = (read_rgb(tmp_path / out / "wide.png").astype(int) for out in ("tiled", "whole"))
    assert tiled.shape == (220, 300, 3)
    assert np.abs(tiled - whole).max() <= 1
    assert np.abs(tiled - whole).mean() < 1e-3
    with Image.open(tmp_path / "tiled" / "small.png") as small:
        assert (small.mode, small.size) == ("LA", (66, 42))


def test_one_bad_picture_is_told_and_the_others_are_made(
    once: Finished, photos: Path, tmp_path: Path, ended: Command
) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    said = ended("upscale", once.bundle, photos, "-o", tmp_path / "out", "--tile", "80")
    assert said.code == 5
    assert "broken.png: cannot be read as an image" in said.err
    assert "1 of 3 images failed" in said.err
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"small.png", "wide.png"}


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
