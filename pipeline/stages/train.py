"""Train a net from nothing but photos, such as a teacher of one's own."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mipkd.core.records import Distilled, Photos, TestSet
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.settings import DistillConfig
from mipkd.distill.training_task import TrainingTask, train_task
from pipeline.stage import Ref, stage


@dataclass(frozen=True)
class Trained:
    """A net with its record, and its checkpoint in the original repository's layout."""

    distilled: Distilled
    checkpoint: Path


@dataclass(frozen=True)
class TrainInputs:
    """A net such as "rcan:g10b20", and the photos that alone teach it."""

    config: DistillConfig
    spec: str
    scale: int
    photos: Ref[Photos]
    tests: Ref[TestSet]


@stage(version=1, resumes=True)
def train(inputs: TrainInputs, *, out: Path) -> Trained:
    """The net, trained on the photos; goes on from a saved step."""
    arch, hyper = students.choose_without_teacher(inputs.spec, inputs.scale)
    task = TrainingTask(arch.name, hyper, None, inputs.photos.value)
    fitted = train_task(inputs.config, task, inputs.tests.value, out)
    file = out / f"{arch.name}.safetensors"
    teachers.save(fitted.student, arch, hyper, file, licence="unknown")
    checkpoint = out / f"{arch.name}_x{inputs.scale}.pth"
    torch.save(arch.original(fitted.student), checkpoint)
    return Trained(
        distilled=Distilled(
            model=teachers.describe(arch, hyper, role="teacher", file=file, licence="unknown"),
            curves=fitted.curves,
            pictures=fitted.pictures,
            steps=fitted.steps,
            seconds=fitted.seconds,
            losses=fitted.losses,
            psnr_y_db=fitted.psnr_y_db,
        ),
        checkpoint=checkpoint,
    )
