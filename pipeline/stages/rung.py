"""Train a candidate of `--student auto` a little further."""

from dataclasses import dataclass
from pathlib import Path

from calibration.patches import held_photos
from mipkd.core.records import Holdout, Model, Photos, TeacherCache
from mipkd.distill import student as students
from mipkd.distill.settings import DistillConfig
from mipkd.distill.training_task import TrainingTask, carry_over, train_task
from pipeline.report.curves import read_rows, series
from pipeline.stage import Ref, stage


@dataclass(frozen=True)
class Rung:
    """A training that has come to a step, and its score on photos that it does not see."""

    folder: Path  # where it goes on from
    steps: tuple[int, ...]  # at which it was validated
    psnr_y_db: tuple[float, ...]  # then, mean over the crops, of the average of its weights
    seconds: float  # wall time so far


@dataclass(frozen=True)
class RungInputs:
    """A training of `config.steps`, done up to step `until`; it goes on from `before`.

    It is validated there, and at half and a quarter of the way. Photos that the holdout is cropped
    from, by `split_seed`, are not trained on.
    """

    config: DistillConfig
    until: int
    teacher: Ref[Model]
    student: str
    photos: Ref[Photos]
    holdout: Ref[Holdout]
    split_seed: int
    cache: Ref[TeacherCache] | None
    before: Ref[Rung] | None


@stage(version=1, resumes=True)
def rung(inputs: RungInputs, *, out: Path) -> Rung:
    """The training at that step."""
    teacher, photos = inputs.teacher.value, inputs.photos.value
    if inputs.before:
        carry_over(inputs.before.value.folder, out)
    arch, hyper = students.find_sizes(teacher, inputs.student)
    held = tuple(sorted(held_photos(photos.count, inputs.split_seed)))
    cache = inputs.cache.value if inputs.cache else None
    task = TrainingTask(arch.name, hyper, teacher, photos, cache, held)
    known = max(inputs.before.value.steps) if inputs.before else 0
    for end in (inputs.until // 4, inputs.until // 2, inputs.until):
        if end > known:
            trained = train_task(inputs.config, task, inputs.holdout.value, out, end)
    steps, psnr_y_db = series(read_rows(trained.curves), "psnr_y_db")
    return Rung(out, tuple(map(int, steps)), tuple(psnr_y_db), trained.seconds)
