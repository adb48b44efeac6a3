"""A copy of a test image among the photos is refused, whatever was done to it, by every command
that trains or calibrates; photos that only resemble one are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from mipkd.core.folders import list_images
from mipkd.core.images import ByteArray, read_rgb, resize_bicubic
from mipkd.core.likeness import find_copies, hash_image
from pipeline import cli

TEACHER = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
Change = Callable[[Image.Image], Image.Image]


def draw(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    return Image.fromarray(resize_bicubic(coarse, (96, 112)))


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


def cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    edge = round(width * share), round(height * share)
    return image.crop((*edge, width - edge[0], height - edge[1]))


CHANGES: dict[str, tuple[Change, str]] = {
    "JPEG 95": (lambda i: i, "jpg 95"),
    "JPEG 75": (lambda i: i, "jpg 75"),
    "WebP": (lambda i: i, "webp 80"),
    "0.9": (lambda i: resized(i, 0.9), "png"),
    "0.5": (lambda i: resized(i, 0.5), "png"),
    "larger": (lambda i: resized(i, 1.7), "png"),
    "mirrored": (ImageOps.mirror, "png"),
    "flipped": (ImageOps.flip, "jpg 85"),
    "90": (lambda i: i.rotate(90, expand=True), "png"),
    "180": (lambda i: i.rotate(180), "png"),
    "270": (lambda i: i.rotate(270, expand=True), "png"),
    "grey": (lambda i: i.convert("L"), "png"),
    "cropped": (lambda i: cropped(i, 0.03), "png"),
    "all": (lambda i: resized(ImageOps.mirror(cropped(i, 0.02)), 0.9).convert("L"), "jpg 80"),
}


def save(image: Image.Image, stem: Path, how: str) -> None:
    suffix, *quality = how.split()
    image.save(stem.with_suffix(f".{suffix}"), quality=int(*quality or (75,)))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", range(3))


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    return fill(tmp_path / "shown", range(10, 12))


def fill(folder: Path, seeds: Sequence[int]) -> Path:
    folder.mkdir()
    for seed in seeds:
        draw(seed).save(folder / f"{seed}.png")
    return folder


# Bicubic beats any teacher on images as smooth as these.
_ANY = ("--set", "identify.accept_worse_than_bicubic=true")


def command(name: str, photos: Path, shown: Path, out: Path) -> Any:
    """One that trains or calibrates, with its photos and test images."""
    own = {
        "run": ("--teacher", TEACHER, "--target", "cpu", *_ANY),
        "plan": ("--teacher", TEACHER, "--target", "cpu", *_ANY),
        "run of a finished student": ("--model", TEACHER, "--target", "cpu"),
        "study": ("--teacher", TEACHER, "--methods", "scratch", "--seeds", "1", *_ANY),
        "train": ("--arch", "edsr:c8b1", "--scale", "2"),
    }[name]
    words = (name.split()[0], *own, "--data", photos, "--val", shown, "--out", out)
    words += ("--set", "distill.patch=16")
    words += ("--set", "distill.steps=2") if "--model" not in own else ()
    words += ("--set", "calibrate.size=16") if name != "train" else ()
    return CliRunner().invoke(cli.app, [str(word) for word in words])


COMMANDS = ("run", "run of a finished student", "plan", "study", "train")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_trains_or_calibrates_refuses_a_copy(
    name: str, photos: Path, shown: Path, tmp_path: Path
) -> None:
    draw(11).resize((101, 86)).transpose(Image.Transpose.ROTATE_90).save(photos / "holiday.jpg")
    said = command(name, photos, shown, tmp_path / "out")
    assert said.exit_code == 2, said.stderr
    *_, what, hint = said.stderr.splitlines()
    expected = f"holiday of {photos} is a copy of the test image 11 of {shown}"
    assert what == f"error: --data: {expected}"
    assert "take it out of --data" in hint
    made = {file.parent.name for file in (tmp_path / "out").glob("*/*")}
    assert not made & {"distill", "train", "calibrate"}
    assert name != "plan" or not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_test_images_themselves_are_refused(name: str, shown: Path, tmp_path: Path) -> None:
    said = command(name, shown, shown, tmp_path / "out")
    assert said.exit_code == 2, said.stderr
    assert f"10 of {shown} is the test image 10 of {shown}; 11 of" in said.stderr
    assert "take them out of --data" in said.stderr


def test_a_copy_of_an_image_of_a_studys_second_set_is_refused(
    photos: Path, shown: Path, tmp_path: Path
) -> None:
    fill(tmp_path / "other", range(20, 22))
    draw(11).save(photos / "holiday.jpg", quality=80)
    said = command("study", photos, Path(f"{tmp_path / 'other'},{shown}"), tmp_path / "out")
    assert said.exit_code == 2
    assert f"the test image 11 of {shown}" in said.stderr


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_known_whatever_was_done_to_it(change: str, tmp_path: Path) -> None:
    made, how = CHANGES[change]
    save(made(draw(11)), tmp_path / "copy", how)
    (file,) = tmp_path.iterdir()
    tests = [(str(seed), np.asarray(draw(seed))) for seed in (10, 11, 12)]
    (found,) = find_copies([("copy", read_rgb(file))], tests)
    assert (found.photo, found.original, found.exact) == ("copy", "11", False)


def test_other_photos_pass_and_a_plan_after_a_run_does_not_look_again(
    photos: Path, shown: Path, tmp_path: Path
) -> None:
    said = command("plan", photos, shown, tmp_path / "out")
    assert said.exit_code == 0, said.stderr
    said = command("train", photos, shown, tmp_path / "out")
    assert said.exit_code == 0, said.stderr
    journal = (tmp_path / "out/journal.jsonl").read_text().splitlines()
    assert ("done", "keep_apart") in [
        (event["event"], event["stage"]) for event in map(json.loads, journal)
    ]


def test_flat_images_are_copies_only_if_every_pixel_is_the_same() -> None:
    """A perceptual hash of nothing but rounding would take any two for one."""
    grey, darker = (np.full((40, 50, 3), level, np.uint8) for level in (120, 121))
    assert hash_image(grey) is None
    assert not list(find_copies([("a", grey)], [("b", darker)]))
    assert [c.exact for c in find_copies([("a", grey)], [("b", grey.copy())])] == [True]


def read_all(folder: Path) -> list[tuple[str, ByteArray]]:
    return [(file.name, read_rgb(file)) for file in list_images(folder)]


def test_set5_is_known_among_real_photos_and_nothing_else_is(assets: Path, tmp_path: Path) -> None:
    tests = read_all(assets / "test/Set5/HR")
    for name, image in tests:
        whole = Image.fromarray(image)
        for change, (made, how) in CHANGES.items():
            stem = tmp_path / f"{name.removesuffix('.png')} {change.replace('.', '')}"
            save(made(whole), stem, how)
    photos = read_all(tmp_path)
    assert len(photos) == 5 * len(CHANGES)
    assert {copy.photo for copy in find_copies(photos, tests)} == {name for name, _ in photos}
    others = read_all(assets / "train/T91") + read_all(assets / "train/BSDS400")[:150]
    assert not list(find_copies(others, tests))
