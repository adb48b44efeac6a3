"""A loss or a network family in a folder of the user's own is named as ours are."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LOSS = '''
from typing import ClassVar
from mipkd.losses.base import Loss, l1

class Edges(Loss):
    """Steps along rows, the student's against the teacher's."""

    {declares}

    def __call__(self, seen, helper):
        mine, theirs = seen.student_image, seen.teacher_image
        return {{"edges": self.weight * l1(mine.diff(dim=-1), theirs.diff(dim=-1))}}

LOSS = Edges
'''

# A global residual, which a tail adds that sees the LR image.
ARCH = """
from dataclasses import dataclass, replace
import torch.nn.functional as F
from torch import nn
from mipkd.archs._parts import parse_budget
from mipkd.archs.base import Arch, SRNet

@dataclass(frozen=True)
class Hyper:
    scale: int
    channels: int

class Skip(SRNet):
    def __init__(self, hyper):
        super().__init__()
        self.scale, self.width = hyper.scale, hyper.channels
        self.lift = nn.Conv2d(3, self.width, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(self.width, self.width, 3, padding=1)])
        self.up = nn.Conv2d(self.width, 3 * self.scale**2, 3, padding=1)

    def head(self, lr_NCHW):
        return self.lift(lr_NCHW)

    def tail(self, features_NCHW, shallow_NCHW, lr_NCHW):
        change = F.pixel_shuffle(self.up(features_NCHW), self.scale)
        return change + F.interpolate(lr_NCHW, scale_factor=float(self.scale))

class Family(Arch):
    name, Hyper, signs = "skip", Hyper, {"ours": ("lift.weight", "up.weight", "blocks.0.weight")}

    def canonical(self, state):
        return ("ours", dict(state)) if set(self.signs["ours"]) <= set(state) else None

    def read(self, state, layout):
        pixels, channels = state["up.weight"].shape[:2]
        return Hyper(round((pixels / 3) ** 0.5), channels), {}

    def paper(self, scale):
        return Hyper(scale, 8)

    def make(self, hyper):
        return Skip(hyper)

    def shrink(self, hyper, budget):
        return replace(hyper, **parse_budget(self.name, budget or "c4", {"c": "channels"}))

    def inherit(self, student, teacher):
        student.load_state_dict(teacher.state_dict())

    def original(self, net):
        return dict(net.state_dict())

ARCH = Family()
"""

TRAIN = """
import sys
from pathlib import Path
import numpy as np, torch
from mipkd.archs.base import load_arch
from mipkd.core.images import write_png
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.data import prepare_photos, prepare_tests
from mipkd.distill.settings import DistillConfig
from mipkd.distill.training_task import TrainingTask, train_task
from pipeline.study import settings_for_method

out, family, method = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
for name in ("photos", "store", "tests", "train"):
    (out / name).mkdir()
pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
write_png(out / "photos/noise.png", pixels)
arch = load_arch(family)
hyper = arch.shrink(arch.paper(2), "c8")
torch.manual_seed(0)
teachers.save(arch.make(hyper), arch, hyper, out / "teacher.safetensors", licence="ours")
options = teachers.TeacherOptions()
model, _ = teachers.identify(out / "teacher.safetensors", role="teacher", options=options)
base = DistillConfig(steps=2, batch=2, patch=16, device="cpu", precision="fp32")
config = settings_for_method(method, base, setting="study.methods")
photos = prepare_photos(out / "photos", scale=2, patch=16, out=out / "store")
tests = prepare_tests(out / "photos", scale=2, out=out / "tests")
arch, hyper = students.choose(model, sys.argv[4])
result = train_task(config, TrainingTask(arch.name, hyper, model, photos), tests, out / "train")
print(model.arch, *result.losses, result.steps)
"""


def train(folder: Path, out: Path, *words: str) -> str:
    """The teacher's family, the losses and the steps of a short training."""
    out.mkdir()
    setup = f"import sys; sys.path[:0] = {[str(ROOT), str(folder)]!r}\n"
    command = [sys.executable, "-c", setup + TRAIN, str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("declares", "method", "losses"),
    [
        ("", "edges+logits", "pixel edges logits"),
        ("beside: ClassVar = ('pixel', 'logits')", "edges", "pixel logits edges"),
    ],
)
def test_a_loss_of_ones_own_is_a_method(
    tmp_path: Path, declares: str, method: str, losses: str
) -> None:
    (tmp_path / "mine/mipkd/losses").mkdir(parents=True)
    (tmp_path / "mine/mipkd/losses/edges.py").write_text(LOSS.format(declares=declares))
    found = train(tmp_path / "mine", tmp_path / "out", "edsr", method, "edsr:c8b1")
    assert found == f"edsr {losses} 2"


def test_a_family_of_ones_own_is_teacher_and_student_of_any_method(tmp_path: Path) -> None:
    (tmp_path / "mine/mipkd/archs").mkdir(parents=True)
    (tmp_path / "mine/mipkd/archs/skip.py").write_text(ARCH)
    found = train(tmp_path / "mine", tmp_path / "out", "skip", "mipkd", "skip:c8")
    assert found == "skip pixel logits mixture_of_priors 2"
