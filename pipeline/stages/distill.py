"""Train the student from its teacher."""

from pathlib import Path

from mipkd.core.records import Distilled, Model, Photos, TeacherCache, TestSet
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.settings import DistillConfig
from mipkd.distill.training_task import TrainingTask, train_task
from pipeline.run import stage


@stage(version=3, resumes=True)
def distill(
    config: DistillConfig,
    teacher: Model,
    spec: str | None,
    photos: Photos,
    tests: TestSet,
    cache: TeacherCache | None,
    out: Path,
) -> Distilled:
    """The student that `spec` names, trained on `photos`; goes on from a saved step.

    Without a `cache` the teacher runs at each step.
    """
    arch, hyper = students.choose(teacher, spec)
    trained = train_task(config, TrainingTask(arch.name, hyper, teacher, photos, cache), tests, out)
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
