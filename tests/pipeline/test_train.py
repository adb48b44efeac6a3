"""A teacher of one's own: trained, written as the original repository would, and read again."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mipkd.core.images import resize_bicubic, write_png
from pipeline import cli

TINY = ("--scale", "2", "--steps", "3", "--set", "distill.batch=2", "--set", "distill.patch=16")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    draw(folder / "0.png", seed=0)
    return folder


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    folder = tmp_path / "shown"
    folder.mkdir()
    draw(folder / "0.png", seed=1)
    return folder


def draw(file: Path, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    write_png(file, resize_bicubic(coarse, (64, 72)))


@pytest.mark.parametrize("arch", ["edsr:c8b1", "rcan:c8g1b1", "edge:c8b2"])
def test_a_trained_net_is_a_teacher_of_the_same_quality(
    arch: str, photos: Path, shown: Path, tmp_path: Path
) -> None:
    command = ["train", "--arch", arch, "--data", str(photos), "--val", str(shown), *TINY]
    ended = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "run")])
    assert ended.exit_code == 0, ended.stderr
    found = re.search(r"([\d.]+) dB PSNR-Y after 3 steps[^\0]*checkpoint: (.*)", ended.stdout)
    assert found
    again = CliRunner().invoke(cli.app, ["doctor", found[2], "--images", str(shown), "--json"])
    facts = json.loads(again.stdout)
    assert facts["arch"] == arch.split(":")[0]
    assert facts["psnr_y_db"] == pytest.approx(float(found[1]), abs=1e-3)


def test_an_unknown_family_is_told_with_the_nearest(photos: Path, tmp_path: Path) -> None:
    command = ["train", "--arch", "rcam", "--data", str(photos), "--out", str(tmp_path / "run")]
    ended = CliRunner().invoke(cli.app, [*command, *TINY])
    assert ended.exit_code == 2
    assert "--arch: unknown family 'rcam'" in ended.stderr
    assert "rcan" in ended.stderr


def test_test_images_among_the_photos_are_refused(
    photos: Path, shown: Path, tmp_path: Path
) -> None:
    draw(photos / "holiday.png", seed=1)
    command = ["train", "--arch", "edsr:c8b1", "--data", str(photos), "--val", str(shown), *TINY]
    ended = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "run")])
    assert ended.exit_code == 2
    assert f"holiday of {photos} is the test image 0 of {shown}" in ended.stderr
    assert not (tmp_path / "run/train").exists()
