"""Train the student from its teacher."""

from pathlib import Path

import torch

from mipkd.core.records import Distilled, Model, Photos, TestSet
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.data import PatchSampler, load_tests
from mipkd.distill.trainer import DistillConfig, train
from pipeline.run import stage


@stage(version=1, resumes=True)
def distill(
    config: DistillConfig,
    teacher: Model,
    spec: str | None,
    photos: Photos,
    tests: TestSet,
    out: Path,
) -> Distilled:
    """The student that `spec` names, trained on `photos`; goes on from a saved step."""
    arch, hyper = students.choose(teacher, spec)
    teacher_net = teachers.load(teacher)
    torch.manual_seed(config.seed)
    student_net = arch.make(hyper)
    students.initialise(student_net, arch, teacher_net, config.init)
    sampler = PatchSampler(photos, patch=config.patch, batch=config.batch, seed=config.seed)
    trained = train(
        config,
        student=student_net,
        teacher=teacher_net,
        sampler=sampler,
        tests=load_tests(tests),
        out=out,
    )
    file = out / "student.safetensors"
    teachers.save(trained.student, arch, hyper, file, licence=teacher.licence)
    return Distilled(
        model=teachers.describe(arch, hyper, role="student", file=file, licence=teacher.licence),
        curves=trained.curves,
        pictures=trained.pictures,
        steps=trained.steps,
        seconds=trained.seconds,
        losses=trained.losses,
        psnr_y_db=trained.psnr_y_db,
    )
