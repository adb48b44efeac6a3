"""What more steps would bring a student that loses too much to its teacher."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from mipkd.core.measurement import Measurement
from mipkd.core.records import Distilled
from pipeline.bench.comparisons import drop_by_image, find_reference, gain_by_image
from pipeline.judge.bounds import Bound
from pipeline.report.curves import read_rows, series

_FEWEST = 3  # points of a curve that tell how it rises
_HOPELESS = 100  # times the steps: nobody trains that long for it


def foresee(bound: Bound, measurements: Sequence[Measurement], training: Distilled | None) -> str:
    """How long the FP32 student would train to lose no more than `bound` of the teacher's gain.

    Late in a training PSNR rises by about as much each time the steps double: the line through the
    second half of the curve, over the logarithm of the steps, is drawn on. "" where nothing is
    missing or nothing was trained.
    """
    if bound == "off" or training is None:
        return ""
    missing_db = _missing_db(bound, measurements)
    if missing_db <= 0:
        return ""
    steps, psnr_db = series(read_rows(training.curves), "psnr_y_db")
    late = [(s, p) for s, p in zip(steps, psnr_db, strict=True) if s >= training.steps / 2]
    if len(late) < _FEWEST:
        return ""
    logs, figures = np.log([s for s, _ in late]), [p for _, p in late]
    rise = float(np.polyfit(logs, figures, 1)[0])  # dB each time the steps grow by e
    at_most = rise * math.log(_HOPELESS)
    lacks = f"{missing_db:.2f} dB are missing to the bound on the loss to the teacher"
    if missing_db > at_most:
        return f"{lacks}, and its curve hardly rises: a larger student may have them"
    needed = training.steps * math.exp(missing_db / rise)
    return (
        f"trained for {training.steps:,} of the about {_round(needed):,} steps it would need: "
        f"{lacks}, and its curve still rises"
    )


def _missing_db(bound: float, measurements: Sequence[Measurement]) -> float:
    student, teacher, bicubic = (
        find_reference(measurements, role) for role in ("student", "teacher", "bicubic")
    )
    if student and student.against != "truth":
        gains = gain_by_image(student, bicubic)
        known = student.against == "teacher" and gains and bound > 0
        return -10 * math.log10(bound) - statistics.fmean(gains.values()) if known else 0.0
    lost, gains = drop_by_image(student, teacher), gain_by_image(teacher, bicubic)
    if not lost or not gains:
        return 0.0
    return statistics.fmean(lost.values()) - bound * statistics.fmean(gains.values())


def _round(steps: float) -> int:
    """Two digits: it is a guess."""
    digits = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return int(round(steps / digits) * digits)
