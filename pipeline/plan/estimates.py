"""What the steps of a plan would take here: seconds and memory.

A step of a kind that this machine has done before takes what it took then. Another is computed from
what `pipeline.plan.speeds` times now and from the settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from mipkd.core.errors import MipkdError
from mipkd.distill import teacher as teachers
from pipeline import receipts
from pipeline.bench.host import describe_host
from pipeline.config import Config
from pipeline.inputs import ImageSizes
from pipeline.plan.formulas import PUBLISH_S, Formulas, Speeds
from pipeline.plan.outline import Outline, outline
from pipeline.plan.speeds import Kept, time_export, time_pixel, time_step, time_work
from pipeline.plan.timings import Timing, Timings
from pipeline.receipts import Receipt
from pipeline.run import Event
from pipeline.stages.rung import RungInputs

TRAINING = ("directions", "teacher_cache", "rung", "distill", "qat")
_SIMILAR = 10.0  # times as many steps: a start weighs otherwise then
_BY_PHOTOS = ("photos", "keep_apart", "teacher_cache")  # stages whose time is that of the photos
# Settings that change nothing in what a step of a training takes.
_NOT_PACE = ("steps", "seed", "validate_every", "save_every", "lr", "betas", "ema", "warmup")


@dataclass(frozen=True)
class Estimate:
    """What the steps that would run take, by their place among the events, and all of them."""

    steps: Mapping[int, Timing]
    training_s: float
    total_s: float  # with the report
    peak_bytes: int | None  # of the process, where it is known of some step


def estimate(
    config: Config,
    events: Sequence[Event],
    sizes: ImageSizes | None,
    timings: Timings,
    scratch: Path,
) -> Estimate:
    """Of the steps that a plan would run; what is timed for it works in the folder `scratch`."""
    todo = {number: event for number, event in enumerate(events) if not event.remembered}
    if not todo:
        return Estimate({}, 0.0, 0.0, None)
    known, slowness = outline(config, events, sizes), time_work()
    past = {number: _recall(event, known, timings, scratch) for number, event in todo.items()}
    missing = [event for number, event in todo.items() if past[number] is None]
    formulas = None
    if missing:
        speeds = _time(known, events, missing, slowness, timings, scratch)
        formulas = Formulas(known, events, speeds)
    found = {n: one or (formulas.time(todo[n]) if formulas else None) for n, one in past.items()}
    steps = {number: one for number, one in found.items() if one}
    return Estimate(
        steps=steps,
        training_s=sum(one.seconds for n, one in steps.items() if todo[n].stage in TRAINING),
        total_s=sum(one.seconds for one in steps.values()) + PUBLISH_S * slowness,
        peak_bytes=max((one.peak_bytes for one in steps.values() if one.peak_bytes), default=None),
    )


def note_timings(
    config: Config, events: Sequence[Event], made: Mapping[str, Receipt], timings: Timings
) -> None:
    """Keep what the steps took that a run has made, however it ended; `made` are their receipts."""
    try:
        known = outline(config, events, None)
    except (MipkdError, OSError):  # why the run ended, which says so itself
        return
    for event in events:
        receipt = made.get(f"{event.stage} {event.label}".strip())
        if not event.remembered and event.record is not None and receipt:
            amount = _amount(event, known)
            took = Timing(receipt.seconds, amount, receipt.peak_rss_bytes)
            timings.note(event.stage, _decides(event, known), took)
    timings.save()


def _recall(event: Event, known: Outline, timings: Timings, scratch: Path) -> Timing | None:
    """What a step of the kind took the last time, or in this plan."""
    with suppress(OSError, ValueError):
        looked = receipts.read(scratch / event.stage / event.key)
        return Timing(looked.seconds, 1.0, looked.peak_rss_bytes)
    past = timings.find(event.stage, _decides(event, known))
    if past is None:
        return None
    amount = _amount(event, known)
    ratio = amount / past.amount
    if event.stage in ("distill", "qat") and not 1 / _SIMILAR <= ratio <= _SIMILAR:
        return None
    return Timing(past.each_s * amount, amount, past.peak_bytes)


def _decides(event: Event, known: Outline) -> dict[str, Any]:
    """All that decides how long a step takes, but for the amount of its work."""
    settings = to_jsonable_python(getattr(event.inputs, "config", None))
    if isinstance(settings, dict):
        settings = {name: value for name, value in settings.items() if name not in _NOT_PACE}
    cached = getattr(event.inputs, "cache", None) is not None
    models = len(getattr(event.inputs, "builts", ()))
    return {
        **known.decides,
        "label": event.label,
        "config": settings,
        "cached": cached,
        "models": models,
    }


def _amount(event: Event, known: Outline) -> float:
    if event.stage in ("distill", "qat"):
        return float(event.inputs.config.steps)
    if isinstance(event.inputs, RungInputs):
        return float(event.inputs.until)
    return float(max(1, known.photo_pixels)) if event.stage in _BY_PHOTOS else 1.0


def _time(
    known: Outline,
    events: Sequence[Event],
    missing: Sequence[Event],
    slowness: float,
    timings: Timings,
    scratch: Path,
) -> Speeds:
    """What the formulas of these steps need, timed now where it was not before."""
    student, teacher = known.student, known.teacher
    student_s = teacher_s = export_s = None
    steps: dict[str, Timing] = {}
    if teacher:
        decides = {"net": [teacher.arch, teacher.hyper]}
        teacher_s = time_pixel(timings, decides, lambda: teachers.load(teacher))
    if student:
        student_s = time_pixel(timings, student.decides, student.make)
        export_s = time_export(timings, student, scratch / "timed-export")
    for event in missing:
        if event.stage == "distill" and student and teacher:
            folder, kept = scratch / f"timed-{event.key}", _kept(event, events)
            config = event.inputs.config
            step = time_step(timings, config, student, teacher, kept, folder, slowness)
            steps |= {event.key: step} if step else {}
    timings.save()
    return Speeds(student_s, teacher_s, export_s, slowness, describe_host().cores, steps)


def _kept(trained: Event, events: Sequence[Event]) -> Kept | None:
    """What a training reads from its cache, only planned or there."""
    if trained.inputs.cache is None:
        return None
    by_key = {event.key: event.inputs for event in events}
    cache = by_key[trained.inputs.cache.key]
    directions = by_key[cache.directions.key] if cache.directions else None
    return Kept(cache.device, directions)
