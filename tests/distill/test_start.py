"""First weights: a projection is fitted once, initialise_once, and held beside what it replaces."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.images import resize_bicubic, write_png
from mipkd.core.records import Model, Photos
from mipkd.core.records import TestSet as ValidationSet
from mipkd.distill.data import prepare_photos, prepare_tests
from mipkd.distill.settings import DistillConfig
from mipkd.distill.start import cut_start_patches, initialise, initialise_once
from mipkd.distill.teacher import describe, save
from mipkd.distill.training_task import TrainingTask, open_training, train_task

LARGE, SMALL = (edsr.Hyper(2, channels=c, blocks=b) for c, b in ((12, 3), (8, 2)))


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    chance = np.random.default_rng(0)
    for folder in ("photos", "store", "tests"):
        (tmp_path / folder).mkdir()
    for index in range(2):
        coarse = chance.integers(0, 256, (24, 24, 3), np.uint8)
        write_png(tmp_path / "photos" / f"{index}.png", resize_bicubic(coarse, (96, 96)))
    return prepare_photos(tmp_path / "photos", scale=2, patch=16, out=tmp_path / "store")


@pytest.fixture
def tests(photos: Photos, tmp_path: Path) -> ValidationSet:
    return prepare_tests(tmp_path / "photos", scale=2, out=tmp_path / "tests")


def net(hyper: edsr.Hyper, seed: int = 0) -> edsr.EDSR:
    torch.manual_seed(seed)
    return edsr.EDSR(hyper).eval()


def begun(photos: Photos) -> edsr.EDSR:
    student = net(SMALL)
    patches = cut_start_patches(photos, most=16, multiple=1, gmacs=1.0, seed=0)
    assert initialise(student, edsr.ARCH, net(LARGE, 1), "project", lambda: patches) == "project"
    return student


def test_the_same_photos_and_seed_give_the_same_start(photos: Photos) -> None:
    first, second = (begun(photos).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_costly_teacher_sees_fewer_patches(photos: Photos) -> None:
    few, many = (
        cut_start_patches(photos, most=16, multiple=1, gmacs=gmacs, seed=0) for gmacs in (1e4, 1.0)
    )
    assert len(few) < len(many)


def test_a_start_is_made_once(photos: Photos, tmp_path: Path) -> None:
    student, made = net(SMALL), []

    def make() -> str:
        made.append(1)
        student.load_state_dict(begun(photos).state_dict())
        return "project"

    assert initialise_once(student, tmp_path, make) == "project"
    again = net(SMALL, seed=5)
    assert initialise_once(again, tmp_path, make) == "project"
    assert len(made) == 1
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in student.state_dict().items())


@pytest.fixture
def teacher(tmp_path: Path) -> Model:
    file = tmp_path / "teacher.safetensors"
    save(net(LARGE, 1), edsr.ARCH, LARGE, file, licence="MIT")
    return describe(edsr.ARCH, LARGE, role="teacher", file=file, licence="MIT")


def test_a_training_killed_before_its_first_save_starts_from_the_same_weights(
    photos: Photos, tests: ValidationSet, teacher: Model, tmp_path: Path
) -> None:
    config = DistillConfig(method="mipkd", steps=4, batch=2, patch=16, precision="fp32")
    task, folders = TrainingTask("edsr", SMALL, teacher, photos), [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    open_training(config, task, folders[1])  # this far it came
    whole, again = (train_task(config, task, tests, folder) for folder in folders)
    assert whole.curves.read_text() == again.curves.read_text()
    for name, value in whole.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[name], value)


def test_a_damaged_start_is_made_again(photos: Photos, tmp_path: Path) -> None:
    (tmp_path / "start.safetensors").write_bytes(b"half")
    student = net(SMALL)
    assert initialise_once(student, tmp_path, lambda: "random") == "random"
    assert initialise_once(net(SMALL, seed=5), tmp_path, lambda: "project") == "random"


def test_a_training_tells_what_its_start_is_worth(
    photos: Photos, tests: ValidationSet, teacher: Model, tmp_path: Path
) -> None:
    config = DistillConfig(method="logits", steps=2, batch=2, patch=16, precision="fp32")
    (tmp_path / "out").mkdir()
    trained = train_task(
        config, TrainingTask("edsr", SMALL, teacher, photos), tests, tmp_path / "out"
    )
    row = json.loads(trained.curves.read_text().splitlines()[0])
    assert {"before/bicubic", "before/inherited", "before/teacher"} <= set(row)
    # What it learns is the teacher, which is random here: nearer to it than what it inherited.
    ours, theirs = row["psnr_y_db"], row["before/teacher"]
    assert abs(ours - theirs) < abs(row["before/inherited"] - theirs)


def test_the_former_name_of_inheriting_is_told() -> None:
    with pytest.raises(ValueError, match='is called "inherit"'):
        DistillConfig(init="teacher")


def test_a_projected_start_has_a_rate_of_its_own_unless_one_is_set() -> None:
    config = DistillConfig(steps=1000)
    projected, random = config.with_rate_for("project"), config.with_rate_for("random")
    assert projected.lr != random.lr
    assert config.with_rate_for("inherit") == random
    assert DistillConfig(lr=3e-4, warmup=0.5).with_rate_for("project").lr == 3e-4
    assert DistillConfig(lr=3e-4, warmup=0.5).with_rate_for("project").warmup == 0.5
