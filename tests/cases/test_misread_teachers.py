"""What a layout assumes is held against photos, and a teacher that bicubic beats teaches nobody."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_makers import ASIS, TRAINED, State, tiny, under
from safetensors.torch import load_file
from typer.testing import CliRunner

from mipkd.core.images import resize_bicubic, write_png
from mipkd.distill.probe import choose_photos
from mipkd.distill.teacher import TeacherOptions, identify
from pipeline import cli

Command = Callable[..., Any]  # runs one


def trained() -> State:
    """A small x2 net that beats bicubic, without the header that tells its settings."""
    return dict(load_file(TRAINED))


def tenth(state: State) -> State:
    return rescaled(state, 0.1)


def rescaled(state: State, res_scale: float) -> State:
    return {k: v / res_scale if ".body.2." in k else v for k, v in state.items()}


def basicsr(state: State, image_range: float) -> State:
    """The same net as BasicSR names it, for another range of pixels."""
    ratio, found = 255 / image_range, {}
    for key, value in state.items():
        for old, new in (
            (r"^head\.0\.", "conv_first."),
            (r"^body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
            (r"^body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
            (r"^body\.\d+\.(?=weight|bias)", "conv_after_body."),
            (r"^tail\.0\.", "upsample."),
            (r"^tail\.1\.", "conv_last."),
        ):
            key = re.sub(old, new, key)
        if "mean" not in key:
            scaled = {
                "conv_first.weight": ratio,
                "conv_last.weight": 1 / ratio,
                "conv_last.bias": 1 / ratio,
            }
            found[key] = value * scaled.get(key, 1.0)
    return found


@dataclass(frozen=True)
class Ended:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def ended() -> Command:
    """Runs a command."""

    def run(*words: object) -> Ended:
        result = CliRunner().invoke(cli.app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.mark.parametrize(
    ("state", "res_scale"),
    [
        (trained(), 1.0),
        (tenth(trained()), 0.1),
        (basicsr(trained(), 255), 1.0),
        (basicsr(tenth(trained()), 255), 0.1),
        (rescaled(trained(), 0.25), 0.25),
        (basicsr(rescaled(trained(), 0.5), 255), 0.5),
    ],
    ids=["as assumed", "tenth", "basicsr", "basicsr tenth", "quarter", "basicsr half"],
)
def test_photos_confirm_what_a_layout_assumes_or_refuse_it(
    state: State, res_scale: float, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "a.pth")
    model, _ = identify(
        tmp_path / "a.pth",
        role="teacher",
        options=ASIS,
        probe=lambda scale: choose_photos(None, None, scale=scale),
    )
    assert model.hyper["res_scale"] == res_scale
    assert model.hyper["image_range"] == 255.0
    assert model.hyper["mean"] == pytest.approx((0.4488, 0.4371, 0.404))
    told = model.settled["res_scale"]
    assert re.search(r"on 7 images of the sample photos: [\d.]+ dB, .*, bicubic", told)
    assert ("was refused" if res_scale != 1 else "confirmed") in told


def test_an_option_is_not_probed(tmp_path: Path) -> None:
    torch.save(basicsr(trained(), 1), tmp_path / "a.pth")
    model, _ = identify(
        tmp_path / "a.pth",
        role="teacher",
        options=TeacherOptions(image_range=255.0),
        probe=lambda scale: choose_photos(None, None, scale=scale),
    )
    assert model.hyper["image_range"] == 255.0
    assert model.settled["image_range"] == "255.0 (option)"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Blurred noise, which bicubic restores well."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for index in range(2):
        coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        write_png(folder / f"{index}.png", resize_bicubic(coarse, (96, 112)))
    return folder


ACCEPT = ("--set", "identify.accept_worse_than_bicubic=true")


def test_doctor_says_that_bicubic_beats_a_checkpoint(
    ended: Command, photos: Path, tmp_path: Path
) -> None:
    torch.save(tiny(), tmp_path / "a.pth")
    said = ended("doctor", tmp_path / "a.pth", "--images", photos, "--json")
    found = json.loads(said.out)
    assert found["psnr_y_db"] < found["bicubic_psnr_y_db"]
    assert said.code == 3
    assert "a.pth: no better than bicubic: " in said.err
    assert ACCEPT[1] in said.err
    assert "pipeline doctor" not in said.err
    assert ended("doctor", tmp_path / "a.pth", "--images", photos, *ACCEPT).code == 0


@pytest.mark.parametrize("command", ["run", "study"])
def test_nothing_learns_from_a_teacher_that_bicubic_beats(
    command: str, ended: Command, photos: Path, tmp_path: Path
) -> None:
    torch.save(tiny(), tmp_path / "a.pth")
    words = ("--teacher", tmp_path / "a.pth", "--data", photos, "--out", tmp_path / "out")
    said = ended(command, *words, *(("--target", "cpu") if command == "run" else ()))
    assert said.code == 3, said.err
    assert "no better than bicubic: " in said.err
    assert "pipeline doctor" in said.err
    assert not list((tmp_path / "out").glob("distill/*"))


def test_a_plan_tells_what_it_remembers_of_the_teacher(
    ended: Command, photos: Path, tmp_path: Path
) -> None:
    torch.save(tiny(), tmp_path / "a.pth")
    words = ("--teacher", tmp_path / "a.pth", "--data", photos, "--out", tmp_path / "out")
    words = (*words, "--target", "cpu", "--set", "calibrate.size=32")
    for command in ("plan", "run", "plan"):
        assert ended(command, *words).code == 3
    assert ended("plan", *words, *ACCEPT).code == 0


def test_a_real_net_in_other_wrappings_keeps_its_figure_on_set5(
    assets: Path, ended: Command, tmp_path: Path
) -> None:
    state = torch.load(assets / "weights/edsr_baseline_x4_deq8.pt", weights_only=True)
    torch.save({"params": under("model.", basicsr(tenth(state), 1))}, tmp_path / "a.pth")
    said = ended("doctor", tmp_path / "a.pth", "--images", assets / "test/Set5", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["psnr_y_db"] == pytest.approx(32.038, abs=0.01)
