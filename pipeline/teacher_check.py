"""Stop before a student learns from a teacher that bicubic beats."""

from __future__ import annotations

import logging
from pathlib import Path

from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Model
from mipkd.distill.teacher import TeacherOptions
from pipeline.run import Run
from pipeline.stage import Ref, Source
from pipeline.stages.compare_teacher import CompareTeacherInputs, compare_teacher

log = logging.getLogger(__name__)


def check_teacher(
    run: Run, teacher: Ref[Model], images: Source | None, options: TeacherOptions, file: Path | None
) -> None:
    """Compare the teacher in `file` with bicubic on `images`, ours where there are none.

    Raises:
        UnsupportedError: it is no better, and that was not accepted.
    """
    if options.accept_worse_than_bicubic:
        return
    found = run.step(compare_teacher, CompareTeacherInputs(teacher, images)).record
    if found and found.images:
        on = f"{found.images} images of {found.source}"
        look = f"mipkd-pipeline doctor {file} says how it was read, "
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
