"""Train the student from its teacher."""

from dataclasses import dataclass
from pathlib import Path

from mipkd.core.records import Distilled, Model, Photos, TeacherCache, TestSet
from mipkd.distill import student as students
from mipkd.distill import teacher as teachers
from mipkd.distill.settings import DistillConfig
from mipkd.distill.training_task import TrainingTask, train_task
from pipeline.stage import Ref, stage


@dataclass(frozen=True)
class DistillInputs:
    """A student such as "edsr:c32b8" (None: the teacher's family chooses) and what teaches it.

    Without a `cache` the teacher runs at each step.
    """

    config: DistillConfig
    teacher: Ref[Model]
    student: str | None
    photos: Ref[Photos]
    tests: Ref[TestSet]
    cache: Ref[TeacherCache] | None = None


@stage(version=3, resumes=True)
def distill(inputs: DistillInputs, *, out: Path) -> Distilled:
    """The student, trained on the photos and validated on the tests; goes on from a saved step."""
    teacher = inputs.teacher.value
    arch, hyper = students.choose(teacher, inputs.student)
    cache = inputs.cache.value if inputs.cache else None
    task = TrainingTask(arch.name, hyper, teacher, inputs.photos.value, cache)
    trained = train_task(inputs.config, task, inputs.tests.value, out)
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
