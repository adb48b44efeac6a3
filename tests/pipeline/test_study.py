"""A study trains each arm from each seed once and pairs them image by image."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mipkd.archs import edsr
from mipkd.core.images import resize_bicubic, write_png
from mipkd.core.records import Host, ImageScore, Model, Photos, SetScores, Study, Trained
from mipkd.distill.settings import DistillConfig
from mipkd.distill.teacher import save
from pipeline import cli
from pipeline.bench.stats import mean_of_few, mean_of_many
from pipeline.report.study import difference, lines_of, markdown
from pipeline.study import StudyConfig, arms, by_method

TINY = ("--steps", "2", "--set", "distill.batch=2", "--set", "distill.patch=16")


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    torch.manual_seed(0)
    hyper = edsr.Hyper(scale=2, channels=8, blocks=2)
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, tmp_path / "t.safetensors", licence="CC0-1.0")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for index in range(2):
            coarse = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
            write_png(tmp_path / name / f"{index}.png", resize_bicubic(coarse, (64, 72)))
    return (
        *("study", "--teacher", str(tmp_path / "t.safetensors"), "--student", "edsr:c8b1"),
        *("--data", str(tmp_path / "one"), "--val", f"{tmp_path / 'one'},{tmp_path / 'two'}"),
        *("--out", str(tmp_path / "study"), *TINY),
    )


def trainings(folder: Path) -> list[str]:
    """Labels of the trainings that ran, in order."""
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [e["label"] for e in events if (e["event"], e["stage"]) == ("start", "distill")]


def test_a_study_compares_arms_and_goes_on_where_it_was(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    methods = ("--methods", "scratch,logits,mipkd+dukd")
    ended = CliRunner().invoke(cli.app, [*command, *methods, "--seeds", "1"])
    assert ended.exit_code == 0, ended.stderr
    ended = CliRunner().invoke(cli.app, [*command, *methods, "--seeds", "2"])
    assert ended.exit_code == 0, ended.stderr
    each = ["scratch", "logits", "mipkd+dukd"]
    assert trainings(tmp_path / "study") == [f"{arm}-{seed}" for seed in (0, 1) for arm in each]
    report = tmp_path / "study/report/latest"
    lines = json.loads((report / "study.json").read_text())["lines"]
    assert [line["arm"] for line in lines] == 2 * ["bicubic", *each, "teacher"]
    mine = next(line for line in lines if (line["test"], line["arm"]) == ("two", "mipkd+dukd"))
    assert mine["seeds"] == 2
    assert mine["against"]["logits"]["low"] <= mine["against"]["logits"]["high"]
    page = (report / "index.html").read_text()
    assert "two: PSNR-Y over logits" in page
    assert "NaN" not in page
    assert "| two | mipkd+dukd | 2 |" in (report / "study.md").read_text()


def test_one_arm_that_fails_stops_no_other(command: tuple[str, ...], tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[study.arms.wild]\nmethod = 'scratch'\nlr = 1e30\nclip_grad_norm = 1e30\n")
    ended = CliRunner().invoke(
        cli.app,
        [
            *(*command, "--config", str(config), "--methods", "scratch", "--seeds", "1"),
            *("--set", "distill.precision=fp32", "--set", "distill.warmup=0"),
        ],
    )
    assert ended.exit_code == 7, ended.stderr
    assert "scratch" in ended.stdout
    assert "Not trained: wild, seed 0" in (tmp_path / "study/report/latest/study.md").read_text()


def test_an_unknown_method_is_told_before_any_work(command: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(cli.app, [*command, "--methods", "scratch,mipdk"])
    assert ended.exit_code == 2
    assert "unknown method 'mipdk'" in ended.stderr
    assert "mipkd" in ended.stderr.split("hint:")[1]


def test_intervals_against_hand_worked_ones() -> None:
    few = mean_of_few([1.0, 2.0, 3.0])
    assert (few.mean, few.high) == (2.0, pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-4))
    assert math.isnan(mean_of_few([1.0]).high)
    many = mean_of_many([1.0] * 10 + [3.0] * 10)
    assert many.mean == 2.0
    assert many.high - many.low == pytest.approx(2 * 1.96 / math.sqrt(20), rel=0.1)


def scored(*psnr_y_db: float) -> tuple[SetScores, ...]:
    images = tuple(ImageScore(f"{i}", value, 0.9) for i, value in enumerate(psnr_y_db))
    return (SetScores("sets/Set5", images),)


def study_of(*trained: Trained) -> Study:
    model = Model.__new__(Model)  # its facts are in the notes alone
    for name, value in {"arch": "edsr", "params": 1000, "scale": 2}.items():
        object.__setattr__(model, name, value)
    photos = Photos(Path(), "", "photos", scale=2, count=2)
    return Study(
        name="s",
        command="c",
        created="2026",
        commit="",
        host=Host("i", "cpu", 2, 1, "Linux"),
        teacher=model,
        student=model,
        photos=photos,
        config={},
        teacher_scores=scored(40.0, 40.0),
        bicubic_scores=scored(30.0, 30.0),
        trained=trained,
        against=("logits",),
        missing=(),
    )


def test_differences_are_paired_by_image_and_seed() -> None:
    base = Trained("logits", 0, 10, 5.0, None, Path(), scored(30.0, 35.0))
    study = study_of(
        base,
        replace(base, seed=1, scores=scored(31.0, 36.0)),
        replace(base, arm="mipkd", scores=scored(30.2, 35.1)),
        replace(base, arm="mipkd", seed=1, scores=scored(31.4, 36.3)),
        replace(base, arm="mipkd", seed=2, scores=scored(99.0, 99.0)),  # logits has no seed 2
    )
    found = difference(study, "mipkd", "logits", 0)
    assert found is not None
    assert found.mean == pytest.approx(0.25)
    assert (found.low, found.high) == (pytest.approx(0.2), pytest.approx(0.3))
    assert difference(study, "mipkd", "scratch", 0) is None
    line = next(line for line in lines_of(study) if line.arm == "mipkd")
    assert (line.seeds, line.steps_per_s) == (3, 2.0)
    assert "+0.250 (+0.200 to +0.300)" in markdown(study)


def test_a_method_brings_its_recipe_and_an_arm_may_change_it() -> None:
    base = DistillConfig(steps=7)
    one = by_method("paper+dukd", base, setting="study.methods")
    assert (one.steps, one.lr, one.init, one.schedule) == (7, 1e-4, "random", "multistep")
    assert list(one.chosen()) == ["pixel", "logits", "mixture_of_priors", "dukd"]
    assert by_method("mipkd", base, setting="study.methods").lr == base.lr
    study = StudyConfig(methods=(), arms={"slow": {"method": "paper", "ema": 0.99}})
    slow = arms(study, base)["slow"]
    assert (slow.steps, slow.lr, slow.init, slow.ema) == (7, 1e-4, "random", 0.99)
