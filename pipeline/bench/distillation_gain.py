"""Whether a gain over another student survives on a target: PSNR image by image, with intervals.

A rival is any model that is neither our student nor its teacher nor bicubic. Its FP32 gain is that
of the references; on a target our own pixels there are held against its own pixels there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mipkd.core.measurement import Measurement
from pipeline.bench.comparisons import Size, find_reference, speedup, students, valid_sizes
from pipeline.bench.stats import Estimate, mean_over_images, ratio_of_means

NO_GAIN = "no gain in FP32 to keep"
_OURS = ("student", "teacher", "bicubic")


@dataclass(frozen=True)
class TargetGain:
    """What our student has over a rival on one target at one precision, in dB of PSNR-Y.

    None is what cannot be told; `why_not` says why.
    """

    target: str  # where both ran
    precision: str  # at which both ran
    simulated: bool  # how both came by their pixels
    images: int = 0  # that both have a finite score of
    psnr_y_db: float | None = None  # ours, mean over them
    rival_psnr_y_db: float | None = None  # the rival's
    gain_db: Estimate | None = None  # student less rival, image by image
    retained: Estimate | None = None  # mean gain here / mean gain in FP32, over the same images
    speed: Estimate | None = None  # how many times as fast as ours the rival is
    size: Size | None = None  # LR, the largest one at which both can be believed
    why_not: str = ""  # why something is null; empty when nothing is


@dataclass(frozen=True)
class DistillationGain:
    """Our student against one rival: in FP32, and on every target that gave pixels."""

    rival: str  # its role among the measurements
    images: int  # that both have a finite score of in FP32
    fp32_db: Estimate | None  # what the student has over it in FP32; null when not known
    why_not: str  # why it is not known; empty when it is
    on: tuple[TargetGain, ...]  # one entry a target and precision that gave pixels


def is_rival(role: str) -> bool:
    """Whether a role is a rival's name."""
    return role not in _OURS


def compare_with(rival: str, measurements: Sequence[Measurement]) -> DistillationGain:
    """All that can be told of our student against `rival`."""
    ours, theirs = (find_reference(measurements, role) for role in ("student", rival))
    fp32 = _differences(ours, theirs)
    why_not = _too_few(fp32) if ours and theirs else "it has no scores in FP32"
    return DistillationGain(
        rival=rival,
        images=len(fp32),
        fp32_db=None if why_not else mean_over_images(list(fp32.values())),
        why_not=why_not,
        on=tuple(
            _gain(m, _of(rival, m, measurements), fp32) for m in students(measurements) if m.scores
        ),
    )


def _gain(m: Measurement, theirs: Measurement | None, fp32: Mapping[str, float]) -> TargetGain:
    """`fp32` are the references' differences, by image."""
    unknown = TargetGain(m.target, m.precision, m.simulated)
    if theirs is None or not theirs.scores:
        return replace(unknown, why_not="the rival has no pixels there")
    if theirs.simulated != m.simulated:
        ours = ("simulated", "measured") if m.simulated else ("measured", "simulated")
        return replace(unknown, why_not=f"ours is {ours[0]}, the rival's {ours[1]}")
    found = _differences(m, theirs)
    size = max(set(valid_sizes(m)) & set(valid_sizes(theirs)), key=math.prod, default=None)
    why_not, retained = _estimate_retained(found, fp32)
    return replace(
        unknown,
        images=len(found),
        psnr_y_db=_mean(m, found),
        rival_psnr_y_db=_mean(theirs, found),
        gain_db=None if _too_few(found) else mean_over_images(list(found.values())),
        retained=retained,
        speed=speedup(m, theirs, size) if size else None,
        size=size,
        why_not=why_not,
    )


def _estimate_retained(
    here: Mapping[str, float], fp32: Mapping[str, float]
) -> tuple[str, Estimate | None]:
    """The share of the FP32 gain that is left, over images that have both; or why it is none."""
    both = [image for image in here if image in fp32]
    if why_not := _too_few(both):
        return why_not, None
    tops, bottoms = [here[image] for image in both], [fp32[image] for image in both]
    share = ratio_of_means(tops, bottoms)
    if mean_over_images(bottoms).low <= 0 or math.isinf(share.high):
        return NO_GAIN, None
    return "", share


def _differences(ours: Measurement | None, theirs: Measurement | None) -> dict[str, float]:
    """Our PSNR-Y less theirs on each image that both have a finite score of."""
    if ours is None or theirs is None:
        return {}
    scores = {s.image: s.psnr_y_db for s in theirs.scores}
    found = {s.image: s.psnr_y_db - scores.get(s.image, math.nan) for s in ours.scores}
    return {image: db for image, db in found.items() if math.isfinite(db)}


def _mean(m: Measurement, images: Mapping[str, float]) -> float | None:
    found = [s.psnr_y_db for s in m.scores if s.image in images]
    return statistics.fmean(found) if found else None


def _too_few(images: Sequence[str] | Mapping[str, float]) -> str:
    """Why a spread cannot be told; "" when it can."""
    return "" if len(images) > 1 else "fewer than 2 test images that both have scores of"


def _of(rival: str, m: Measurement, measurements: Sequence[Measurement]) -> Measurement | None:
    wanted = (rival, m.target, m.precision)
    return next((o for o in measurements if (o.role, o.target, o.precision) == wanted), None)
