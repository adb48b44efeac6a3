"""Stop before a student learns from a teacher that bicubic beats."""

from __future__ import annotations

import logging
from pathlib import Path

from mipkd.core.errors import UnsupportedError
from mipkd.distill.teacher import TeacherOptions
from pipeline.run import Run
from pipeline.stages.compare_teacher import CompareTeacherInputs, compare_teacher

log = logging.getLogger(__name__)


def check_teacher(
    run: Run,
    inputs: CompareTeacherInputs,
    options: TeacherOptions,
    file: Path | None,
    *,
    teaches_alone: bool = False,
) -> None:
    """Compare the teacher in `file` with bicubic on images. One that `teaches_alone`, on frames
    whose truth nobody has, may have been trained for others than ours: of it that is said.

    Raises:
        UnsupportedError: it is no better, and that was not accepted.
    """
    if options.accept_worse_than_bicubic:
        return
    found = run.step(compare_teacher, inputs).record
    if found and found.images:
        on = f"{found.images} images of {found.source}"
        look = f"mipkd-pipeline doctor {file} says how it was read, "
        if teaches_alone and found.teacher_db <= found.bicubic_db:
            say = "teacher: %.2f dB, bicubic %.2f dB, on %s: it was trained for images that are "
            say += "degraded otherwise, or is misread: %sand its images tell"
            log.warning(say, found.teacher_db, found.bicubic_db, on, look)
            return
        refuse_worse_than_bicubic(f"{file}", found.teacher_db, found.bicubic_db, on, look=look)
        log.info("teacher: %.2f dB, bicubic %.2f dB, on %s", found.teacher_db, found.bicubic_db, on)


def refuse_worse_than_bicubic(
    name: str, teacher_db: float, bicubic_db: float, on: str, *, look: str = ""
) -> None:
    """Refuse a net that bicubic beats; `look` begins the hint with where more is told of it.

    Raises:
        UnsupportedError: it does.
    """
    if teacher_db > bicubic_db:
        return
    raise UnsupportedError(
        f"{name}: no better than bicubic: {teacher_db:.2f} dB, bicubic {bicubic_db:.2f} dB, on "
        f"{on}: it is misread, not trained, or trained for images that are degraded otherwise",
        hint=f"{look}--set identify.image_range=1 and the like change how it is read; nets that "
        "invent detail, like Real-ESRGAN, lose by right: "
        "--set identify.accept_worse_than_bicubic=true",
    )
