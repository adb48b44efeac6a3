"""A study trains each arm from each seed once and pairs them image by image."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mipkd.archs import edsr
from mipkd.core.images import resize_bicubic, write_png
from mipkd.core.measurement import Host, ImageScore
from mipkd.core.records import Model, Photos
from mipkd.core.study import Pace, SetScores, Study, Trained
from mipkd.distill.settings import DistillConfig
from mipkd.distill.teacher import save
from pipeline import cli
from pipeline.report.study import ABOUT, difference, lines_of, markdown
from pipeline.study import StudyConfig, arms, settings_for_method, steps_within

T_OF_2 = 12.7062  # Student's t of two, 97.5 %
TINY = (
    *("--steps", "2", "--set", "distill.batch=2", "--set", "distill.patch=16"),
    *("--set", "identify.accept_worse_than_bicubic=true"),  # the teacher is not trained
)


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    torch.manual_seed(0)
    hyper = edsr.Hyper(scale=2, channels=8, blocks=2)
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, tmp_path / "t.safetensors", licence="CC0-1.0")
    rng = np.random.default_rng(0)
    for name in ("photos", "one", "two"):
        (tmp_path / name).mkdir()
        for index in range(2):
            coarse = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
            write_png(tmp_path / name / f"{index}.png", resize_bicubic(coarse, (64, 72)))
    return (
        *("study", "--teacher", str(tmp_path / "t.safetensors"), "--student", "edsr:c8b1"),
        *("--data", str(tmp_path / "photos"), "--val", f"{tmp_path / 'one'},{tmp_path / 'two'}"),
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
    over = mine["against"]["logits"]
    assert (over["seeds"], over["images"]) == (2, 2)
    assert over["db"]["low"] <= over["db"]["value"] <= over["db"]["high"]
    page = (report / "index.html").read_text()
    assert "one, two: over 2 seeds and 2 images" in page
    assert "two: PSNR-Y over logits" in page
    assert "NaN" not in page
    assert "| two | mipkd+dukd | 2 |" in (report / "study.md").read_text()


MAY_BE_KEPT = ("--set", "distill.batch=8")  # two steps read more pixels than the photos have


def test_the_teacher_runs_over_the_photos_once_for_all_that_read_its_images(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    study = tmp_path / "study"
    asked = (*command, *MAY_BE_KEPT, "--methods", "scratch,logits,logits+dukd,fitnet")
    ended = CliRunner().invoke(cli.app, [*asked, "--seeds", "1"])
    assert ended.exit_code == 0, ended.stderr
    assert "teacher cache: 2 of 2 photos" in ended.stderr.replace("\n", " ")
    ended = CliRunner().invoke(cli.app, [*asked, "--seeds", "2"])
    assert ended.exit_code == 0, ended.stderr
    events = [json.loads(line) for line in (study / "journal.jsonl").read_text().splitlines()]
    ran = [e["event"] for e in events if e["stage"] == "teacher_cache"]
    assert ran == ["start", "done", "remembered"]
    assert len(trainings(study)) == 8
    (cache,) = (study / "teacher_cache").iterdir()
    asked_for = {
        receipt["label"]: receipt["asked"]["cache"]
        for receipt in (json.loads(f.read_text()) for f in study.glob("distill/*/receipt.json"))
    }
    kept = {label.rpartition("-")[0] for label, key in asked_for.items() if key == f"#{cache.name}"}
    assert kept == {"logits", "logits+dukd"}
    assert asked_for["scratch-0"] is None


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (("--set", "distill.cache_gb=0.000001", *MAY_BE_KEPT), "images left out: "),
        ((), "left out: photos have "),
    ],
)
def test_the_teacher_runs_at_each_step_where_a_cache_is_too_large_or_does_not_pay(
    command: tuple[str, ...], tmp_path: Path, settings: tuple[str, ...], why: str
) -> None:
    asked = [*command, *settings, "--methods", "logits", "--seeds", "1"]
    ended = CliRunner().invoke(cli.app, asked)
    assert ended.exit_code == 0, ended.stderr
    assert why in " ".join(ended.stderr.split())
    assert not (tmp_path / "study/teacher_cache").exists()


def test_what_was_trained_without_a_cache_stays_so_where_more_is_trained(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    for seeds in (1, 3):  # of three seeds it would pay
        asked = [*command, "--methods", "logits", "--seeds", str(seeds)]
        ended = CliRunner().invoke(cli.app, asked)
        assert ended.exit_code == 0, ended.stderr
    assert trainings(tmp_path / "study") == ["logits-0", "logits-1", "logits-2"]
    assert not (tmp_path / "study/teacher_cache").exists()


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


def test_arms_of_equal_time_stand_beside_equal_steps(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    methods = ("--methods", "scratch,mipkd", "--seeds", "1", "--seconds", "1")
    methods += ("--set", "distill.init=random")  # a projection may take longer than that
    ended = CliRunner().invoke(cli.app, [*command, *methods])
    assert ended.exit_code == 0, ended.stderr
    report = json.loads((tmp_path / "study/report/latest/study.json").read_text())
    rows = {line["arm"]: line for line in report["lines"] if line["test"] == "one"}
    assert list(rows)[1:-1] == ["scratch", "mipkd", "scratch, 1 s", "mipkd, 1 s"]
    assert rows["mipkd"]["steps"] == 2
    for name, pace in report["study"]["paces"].items():
        fits = steps_within(Pace(**pace), 1)
        assert rows[f"{name}, 1 s"]["steps"] == fits > 0
    slow, fast = (report["study"]["paces"][name]["step_s"] for name in ("mipkd", "scratch"))
    assert slow > fast  # it runs the teacher too
    again = CliRunner().invoke(cli.app, [*command, *methods])
    assert again.exit_code == 0, again.stderr
    assert len(trainings(tmp_path / "study")) == 4  # the pace is remembered, and so are they


def test_too_little_time_is_told_and_stops_no_other(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    methods = ("--methods", "scratch", "--seeds", "1", "--seconds", "1e-6")
    ended = CliRunner().invoke(cli.app, [*command, *methods])
    assert ended.exit_code == 7, ended.stderr
    notes = (tmp_path / "study/report/latest/study.md").read_text()
    assert "Not trained: scratch, 1e-06 s: its start alone takes" in notes


def test_test_images_among_the_photos_are_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copy(tmp_path / "two/1.png", tmp_path / "photos/holiday.png")
    ended = CliRunner().invoke(cli.app, [*command, "--methods", "scratch"])
    assert ended.exit_code == 2
    assert f"holiday of {tmp_path / 'photos'} is the test image 1 of" in ended.stderr
    assert trainings(tmp_path / "study") == []


def scored(*psnr_y_db: float) -> tuple[SetScores, ...]:
    images = tuple(
        ImageScore(f"{i}", {"psnr_y": value, "ssim_y": 0.9}) for i, value in enumerate(psnr_y_db)
    )
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
    found = difference(study, "mipkd", "logits", 0)  # 0.2 and 0.1 dB, then 0.4 and 0.3
    assert found is not None
    assert found.over == "over 2 seeds and 2 images"
    assert found.db.value == pytest.approx(0.25)
    variances = 0.1**2, 0.05**2  # of the mean: by the seeds' means, by the images'
    reach = T_OF_2 * sum(variances) / math.sqrt(sum(variances))
    assert found.db.high == pytest.approx(0.25 + reach, abs=1e-4)
    assert found.db.low == pytest.approx(0.25 - reach, abs=1e-4)
    assert difference(study, "mipkd", "scratch", 0) is None
    line = next(line for line in lines_of(study) if line.arm == "mipkd")
    assert (line.seeds, line.steps, line.seconds) == (3, 10, 5.0)
    assert "Set5: over 2 seeds and 2 images" in markdown(study)


def test_one_seed_has_a_difference_and_no_interval() -> None:
    base = Trained("logits", 0, 10, 5.0, None, Path(), scored(30.0, 35.0))
    study = study_of(base, replace(base, arm="mipkd", scores=scored(30.2, 35.1)))
    found = difference(study, "mipkd", "logits", 0)
    assert found is not None
    assert found.db.value == pytest.approx(0.15)
    assert math.isnan(found.db.low)
    assert not found.known
    page = markdown(study)
    assert "+0.150 (not known: one seed)" in page
    assert "over 2 images; spread over trainings not known: one seed" in page


def test_equal_time_is_compared_with_equal_time() -> None:
    base = Trained("logits", 0, 10, 5.0, None, Path(), scored(30.0, 35.0))
    timed = replace(base, scores=scored(31.0, 36.0), budget_s=60.0)
    better = replace(base, arm="mipkd", scores=scored(30.5, 35.5))
    slower = replace(timed, arm="mipkd", steps=4, scores=scored(30.9, 35.9))
    study = study_of(base, timed, better, slower)
    rows = {line.arm: line for line in lines_of(study)}
    assert rows["mipkd"].against["logits"] is not None
    assert rows["mipkd"].against["logits"].db.value == pytest.approx(0.5)
    at_time = rows["mipkd, 60 s"].against["logits"]
    assert at_time is not None
    assert at_time.db.value == pytest.approx(-0.1)
    assert rows["logits, 60 s"].against["logits"] is None
    assert "which all arms share, not" in markdown(study)
    assert "which all arms share, not" not in markdown(study_of(base, better))


def test_a_control_is_explained_where_there_is_one() -> None:
    base = Trained("logits", 0, 10, 5.0, None, Path(), scored(30.0, 35.0))
    assert ABOUT["control"] in markdown(study_of(base, replace(base, arm="control")))
    assert ABOUT["control"] not in markdown(study_of(base))


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0.5, 0), (1.01, 0), (1.05, 2), (3.0, 83), (60.0, 2450), (1e4, 416_000)]
)
def test_steps_that_fit_are_rounded_down_to_three_digits(seconds: float, steps: int) -> None:
    pace = Pace(start_s=1.0, step_s=0.024)
    assert steps_within(pace, seconds) == steps
    assert steps_within(replace(pace, why_not="no memory"), seconds) == 0


def test_a_method_brings_its_recipe_and_an_arm_may_change_it() -> None:
    base = DistillConfig(steps=7)
    one = settings_for_method("paper+dukd", base, setting="study.methods")
    assert (one.steps, one.lr, one.init, one.schedule) == (7, 1e-4, "random", "multistep")
    assert list(one.build_losses()) == ["pixel", "logits", "mixture_of_priors", "dukd"]
    assert settings_for_method("mipkd", base, setting="study.methods").lr == base.lr
    study = StudyConfig(methods=(), arms={"slow": {"method": "paper", "ema": 0.99}})
    slow = arms(study, base)["slow"]
    assert (slow.steps, slow.lr, slow.init, slow.ema) == (7, 1e-4, "random", 0.99)
