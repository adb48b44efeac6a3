"""A study: one student taught in several ways, from several seeds, and what each way brought.

Every training is a remembered step, so that a study that was interrupted goes on where it was
and one that is widened trains only what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mipkd.core.errors import MipkdError, StageError, UsageError, nearest
from mipkd.core.records import Distilled, Model, SetScores, Study, Trained
from mipkd.distill import ranks
from mipkd.distill.settings import METHODS
from mipkd.distill.teacher import TeacherOptions
from mipkd.distill.trainer import DistillConfig
from pipeline.bench.host import describe_host
from pipeline.report.study import write_study
from pipeline.run import Run, Source, commit, now
from pipeline.stages.assess import assess
from pipeline.stages.distill import distill
from pipeline.stages.identify import identify
from pipeline.stages.prepare import photos
from pipeline.stages.prepare import tests as prepare_tests

log = logging.getLogger(__name__)


class StudyConfig(BaseModel):
    """What is compared. An arm is a method, methods joined by "+", or changes of [distill]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = ("scratch", "logits", "fakd", "mipkd", "mipkd+dukd")
    arms: dict[str, dict[str, Any]] = {}  # [study.arms.NAME]: settings of [distill] that differ
    seeds: int = Field(3, ge=1)
    against: tuple[str, ...] = ("scratch", "logits")  # the arms that differences are taken to


@dataclass(frozen=True)
class Subject:
    """What all arms share."""

    teacher: Source
    options: TeacherOptions
    student: str | None
    data: Source | None
    tests: tuple[Source | None, ...]  # the first is validated on while training


def arms(study: StudyConfig, distill: DistillConfig) -> dict[str, DistillConfig]:
    """The settings of each arm, by name.

    Raises:
        UsageError: an unknown method, or a setting that does not exist.
    """
    found = {name: by_method(name, distill, setting="study.methods") for name in study.methods}
    for name, changed in study.arms.items():
        try:
            found[name] = DistillConfig.model_validate(_chosen(distill) | changed)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"study.arms.{name}: {place}: {first['msg']}") from error
        found[name].chosen()
    for name in study.against:
        if name not in found and "against" in study.model_fields_set:
            log.warning("study.against: %s is not an arm of this study", name)
    return found


def _chosen(distill: DistillConfig) -> dict[str, Any]:
    """What the user set: an arm's method may have other defaults for the rest."""
    return {name: getattr(distill, name) for name in distill.model_fields_set}


def by_method(name: str, base: DistillConfig, *, setting: str) -> DistillConfig:
    """`base` but for the losses and settings of a method, and other losses joined by "+".

    Raises:
        UsageError: an unknown method or loss; `setting` is where it was named.
    """
    method, *more = name.split("+")
    if method not in METHODS:
        raise UsageError(f"{setting}: unknown method {method!r}", hint=nearest(method, METHODS))
    chosen = METHODS[method]
    losses = (*chosen.losses, *({"name": loss} for loss in more))
    found = base.model_copy(update={**chosen.overrides, "method": None, "losses": losses})
    found.chosen()
    return found


def conduct(
    study: StudyConfig, base: DistillConfig, subject: Subject, run: Run, *, command: str
) -> Study:
    """Train and score every arm from every seed; the report is written anew after each.

    One arm's failure is told and the others go on.

    Raises:
        StageError: every training failed.
    """
    settled = arms(study, base)
    teacher = run.step(
        identify, subject.options, subject.teacher, "teacher", subject.tests[0], label="teacher"
    )
    sets = [
        run.step(prepare_tests, None, teacher, source, label=str(number))
        for number, source in enumerate(subject.tests)
    ]
    pixels = run.step(photos, base.patch, teacher, subject.data)
    theirs = run.step(assess, None, teacher, sets, label="teacher")
    bicubic = run.step(assess, None, None, sets, label="bicubic")
    found: Study | None = None
    trained: list[Trained] = []
    missing: list[str] = []
    student: Model | None = None
    for arm, seed, config in _trainings(study, base, settled):
        label = f"{arm}-{seed}"
        try:
            made = run.step(distill, config, teacher, subject.student, pixels, sets[0], label=label)
            scores = run.step(assess, None, made, sets, label=label)
            trained.append(_trained(arm, seed, made.value, scores.value, run.receipts()))
            student = made.value.model
        except MipkdError as error:
            if ranks.current().count > 1:
                raise  # what the other processes are at is not known
            log.error("%s: %s", label, error.what)
            missing.append(f"{arm}, seed {seed}: {error.what}")
        if student is None:
            continue
        found = Study(
            name=run.root.name,
            command=command,
            created=now(),
            commit=commit(),
            host=describe_host(),
            teacher=teacher.value,
            student=student,
            photos=pixels.value,
            config={"distill": base.model_dump(mode="json", exclude_none=True)}
            | {"study": study.model_dump(mode="json", exclude_none=True)},
            teacher_scores=theirs.value,
            bicubic_scores=bicubic.value,
            trained=tuple(trained),
            against=tuple(name for name in study.against if name in settled),
            missing=tuple(missing),
        )
        write_study(found, run.root / "report" / "latest")
    if found is None:
        raise StageError(f"study: no training ended; the first: {missing[0]}")
    return found


def _trained(
    arm: str,
    seed: int,
    made: Distilled,
    scores: tuple[SetScores, ...],
    receipts: Mapping[str, Mapping[str, Any]],
) -> Trained:
    peak = receipts.get(f"distill {arm}-{seed}", {}).get("peak_rss_bytes")
    return Trained(arm, seed, made.steps, made.seconds, peak, made.curves, scores)


def _trainings(
    study: StudyConfig, base: DistillConfig, settled: Mapping[str, DistillConfig]
) -> Iterator[tuple[str, int, DistillConfig]]:
    """Seed by seed, so that a study that is cut short has whole comparisons."""
    for seed in range(base.seed, base.seed + study.seeds):
        for arm, config in settled.items():
            yield arm, seed, config.model_copy(update={"seed": seed})
