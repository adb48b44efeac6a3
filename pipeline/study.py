"""A study: one student taught in several ways, from several seeds, and what each way brought.

Every training is a remembered step, so that a study that was interrupted goes on where it was
and one that is widened trains only what is new.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mipkd.core.errors import MipkdError, StageError, UsageError, nearest
from mipkd.core.records import Model, Photos, TeacherCache, TestSet
from mipkd.core.study import Pace, Study, Trained, arm_name
from mipkd.distill import ranks
from mipkd.distill import student as students
from mipkd.distill.degradation import BICUBIC, DegradationConfig
from mipkd.distill.settings import DistillConfig, find_method, method_names
from mipkd.distill.teacher import TeacherOptions
from pipeline import caching
from pipeline.bench.host import describe_host
from pipeline.origin import commit, now
from pipeline.report.study import write_study
from pipeline.run import Run
from pipeline.stage import Ref, Source
from pipeline.stages.assess import AssessInputs, assess
from pipeline.stages.compare_teacher import CompareTeacherInputs
from pipeline.stages.distill import DistillInputs, distill
from pipeline.stages.identify import IdentifyInputs, identify
from pipeline.stages.keep_apart import KeepApartInputs, keep_apart
from pipeline.stages.pace import PaceInputs, pace
from pipeline.stages.prepare import PhotosInputs, TestsInputs, photos
from pipeline.stages.prepare import tests as prepare_tests
from pipeline.teacher_check import check_teacher

log = logging.getLogger(__name__)


class StudyConfig(BaseModel):
    """What is compared. An arm is a method, methods joined by "+", or changes of [distill]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = ("scratch", "logits", "fakd", "mipkd", "mipkd+dukd")
    arms: dict[str, dict[str, Any]] = {}  # [study.arms.NAME]: settings of [distill] that differ
    seeds: int = Field(3, ge=1)
    seconds: float | None = Field(None, gt=0)  # each arm once more, with so long to train
    against: tuple[str, ...] = ("scratch", "logits")  # the arms that differences are taken to


@dataclass(frozen=True)
class Subject:
    """What all arms share."""

    teacher: Source
    options: TeacherOptions
    student: str | None
    data: Source | None
    tests: tuple[Source | None, ...]  # the first is validated on while training
    lr_only: bool = False  # whether the photos are LR frames without truth
    lr_only_tests: tuple[bool, ...] = ()  # which test sets are: the teacher's image stands for it
    degradation: DegradationConfig = BICUBIC


@dataclass(frozen=True)
class Arm:
    """A way of teaching, and the seconds that its steps were fitted to."""

    name: str
    config: DistillConfig
    budget_s: float | None = None

    def label(self, seed: int) -> str:
        """How the steps of one of its trainings are called."""
        return f"{arm_name(self.name, self.budget_s)}-{seed}"


def arms(study: StudyConfig, distill: DistillConfig) -> dict[str, DistillConfig]:
    """The settings of each arm, by name.

    Raises:
        UsageError: an unknown method, or a setting that does not exist.
    """
    found = {
        name: settings_for_method(name, distill, setting="study.methods") for name in study.methods
    }
    for name, changed in study.arms.items():
        if name in found:
            raise UsageError(f"study.arms.{name}: a method of study.methods has that name")
        if "seed" in changed:
            raise UsageError(
                f"study.arms.{name}: seed: arms have the same seeds",
                hint="distill.seed is the first of study.seeds",
            )
        try:
            found[name] = DistillConfig.model_validate(distill.set_by_user() | changed)
        except ValidationError as error:
            first = error.errors()[0]
            place = ": ".join([f"study.arms.{name}", *map(str, first["loc"])])
            raise UsageError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from error
        found[name].build_losses()
    for name in study.against:
        if name not in found and "against" in study.model_fields_set:
            log.warning("study.against: %s is not an arm of this study", name)
    return found


def settings_for_method(name: str, base: DistillConfig, *, setting: str) -> DistillConfig:
    """`base` but for the losses and settings of a method, and other losses joined by "+".

    Raises:
        UsageError: an unknown method or loss; `setting` is where it was named.
    """
    method, *more = name.split("+")
    if method not in method_names():
        hint = nearest(method, method_names())
        raise UsageError(f"{setting}: unknown method {method!r}", hint=hint)
    chosen = find_method(method)
    losses = (*chosen.losses, *({"name": loss} for loss in more))
    own = base.set_by_user() | {**chosen.overrides, "method": None, "losses": losses}
    found = type(base).model_validate(own)
    found.build_losses()
    return found


@dataclass(frozen=True)
class _Shared:
    """What all trainings of a study start from, made or remembered."""

    teacher: Ref[Model]
    spec: str | None
    photos: Ref[Photos]
    sets: tuple[Ref[TestSet], ...]


def run_study(
    study: StudyConfig, base: DistillConfig, subject: Subject, run: Run, *, command: str
) -> Study:
    """Train and score every arm from every seed; the report is written anew after each.

    One arm's failure is logged and the others go on.

    Raises:
        UsageError: an unknown method or setting, or a test image is among the photos.
        UnsupportedError: bicubic beats the teacher, and that was not accepted.
        StageError: every training failed.
    """
    settled = arms(study, base)
    for name, config in settled.items():
        _check_losses(name, config, truth=not subject.lr_only)
    shared = _prepare(max(config.patch for config in settled.values()), subject, run)
    caches = _caches(study, settled, shared, run)
    paces = _paces(settled, shared, caches, run) if study.seconds else {}
    facts = _facts(study, base, settled, shared, run)
    missing: list[str] = []
    entered = [Arm(name, config) for name, config in settled.items()]
    entered += list(_at_equal_time(settled, paces, study.seconds, missing))
    trained: list[Trained] = []
    found: Study | None = None
    for arm, seed in _trainings(study, base, entered):
        try:
            one, student = _train(arm, seed, shared, caches[arm.name], run)
            trained.append(one)
        except MipkdError as error:
            if ranks.current().count > 1:
                raise  # what the other processes are at is not known
            log.error("%s: %s", arm.label(seed), error.what)
            missing.append(f"{arm_name(arm.name, arm.budget_s)}, seed {seed}: {error.what}")
        if trained:
            found = facts(
                command=command,
                created=now(),
                student=student,
                trained=tuple(trained),
                missing=tuple(missing),
                paces=paces,
            )
            write_study(found, run.root / "report" / "latest")
    if found is None:
        raise StageError(f"study: no training ended; the first: {missing[0]}")
    return found


def _prepare(patch: int, subject: Subject, run: Run) -> _Shared:
    if subject.student == "auto":
        raise UsageError(
            "--student auto: a study teaches one student in several ways",
            hint="name it, such as --student edsr:c32b8; run and plan take auto",
        )
    with_truth = None if subject.lr_only else subject.data
    inputs = IdentifyInputs(subject.options, subject.teacher, "teacher", with_truth)
    teacher = run.step(identify, inputs, label="teacher")
    students.find_sizes(teacher.value, subject.student)
    lacks = subject.lr_only_tests or (False,) * len(subject.tests)
    images = (None if lacks[0] else subject.tests[0]) or with_truth
    looked_at, alone = CompareTeacherInputs(teacher, images, subject.degradation), subject.lr_only
    check_teacher(run, looked_at, subject.options, subject.teacher.path, teaches_alone=alone)
    sets = tuple(
        run.step(prepare_tests, _of_tests(teacher, subject, number), label=str(number))
        for number in range(len(subject.tests))
    )
    frames = subject.lr_only
    pixels = run.step(
        photos, PhotosInputs(patch, teacher, subject.data, frames, subject.degradation)
    )
    run.step(keep_apart, KeepApartInputs(pixels, sets))
    return _Shared(teacher, subject.student, pixels, sets)


def _of_tests(teacher: Ref[Model], subject: Subject, number: int) -> TestsInputs:
    source, lacks = subject.tests[number], subject.lr_only_tests
    if lacks and lacks[number]:
        return TestsInputs(teacher, source, teacher, "teacher")
    return TestsInputs(teacher, source, degradation=subject.degradation)


def _check_losses(name: str, config: DistillConfig, *, truth: bool) -> None:
    try:
        config.build_losses(truth=truth)
    except UsageError as error:
        raise UsageError(f"study: {name}: {error.what}", hint=error.hint) from error


def _facts(
    study: StudyConfig,
    base: DistillConfig,
    settled: Mapping[str, DistillConfig],
    shared: _Shared,
    run: Run,
) -> partial[Study]:
    """All of a study that its trainings do not change."""
    of_teacher, of_bicubic = (AssessInputs(net, shared.sets) for net in (shared.teacher, None))
    return partial(
        Study,
        name=run.root.name,
        commit=commit(),
        host=describe_host(),
        teacher=shared.teacher.value,
        photos=shared.photos.value,
        config={"distill": base.model_dump(mode="json", exclude_none=True)}
        | {"study": study.model_dump(mode="json", exclude_none=True)},
        teacher_scores=run.step(assess, of_teacher, label="teacher").value,
        bicubic_scores=run.step(assess, of_bicubic, label="bicubic").value,
        against=tuple(name for name in study.against if name in settled),
    )


def _caches(
    study: StudyConfig, settled: Mapping[str, DistillConfig], shared: _Shared, run: Run
) -> dict[str, Ref[TeacherCache] | None]:
    """What is kept of the teacher for each arm, all of its seeds counted."""
    subject = caching.Subject(run, shared.teacher, shared.spec, shared.photos, shared.sets[0])
    trainings = {
        (name, seed): config.model_copy(update={"seed": seed})
        for name, config in settled.items()
        for seed in range(config.seed, config.seed + study.seeds)
    }
    found = caching.keep_teacher(subject, trainings)
    return {name: cache for (name, _), cache in found.items()}


def _paces(
    settled: Mapping[str, DistillConfig],
    shared: _Shared,
    caches: Mapping[str, Ref[TeacherCache] | None],
    run: Run,
) -> dict[str, Pace]:
    """What a step of each arm takes here; timed anew where anything that its speed depends on
    has changed."""
    launched = {
        name: [config.accumulate, config.cuda_graphs, config.compile]
        for name, config in settled.items()
    }
    under = {"torch": version("torch"), "processes": ranks.current().count, "launched": launched}
    under["threads"] = torch.get_num_threads()
    inputs = PaceInputs(settled, shared.teacher, shared.spec, shared.photos, caches)
    return run.step(pace, inputs, depends_on=[describe_host(), under]).value


def _at_equal_time(
    settled: Mapping[str, DistillConfig],
    paces: Mapping[str, Pace],
    budget_s: float | None,
    missing: list[str],
) -> Iterator[Arm]:
    """The arms with as many steps as they can do in `budget_s`, so that a training is the same
    again; why one has none goes to `missing`."""
    for name, found in paces.items():
        assert budget_s is not None, "there are paces of arms with a budget alone"
        steps = steps_within(found, budget_s)
        if not steps:
            why = found.why_not or f"its start alone takes {found.start_s:.1f} s"
            missing.append(f"{arm_name(name, budget_s)}: {why}")
            continue
        changed = {"steps": steps, "compile": found.compiled}
        yield Arm(name, settled[name].model_copy(update=changed), budget_s)


def steps_within(found: Pace, budget_s: float) -> int:
    """Whole steps that fit, rounded down to three digits; 0 where none does."""
    steps = 0 if found.why_not else int(max(0.0, budget_s - found.start_s) / found.step_s)
    unit: int = 10 ** max(0, len(str(steps)) - 3)
    return steps // unit * unit


def _train(
    arm: Arm, seed: int, shared: _Shared, cache: Ref[TeacherCache] | None, run: Run
) -> tuple[Trained, Model]:
    config, label = arm.config.model_copy(update={"seed": seed}), arm.label(seed)
    inputs = DistillInputs(
        config=config,
        teacher=shared.teacher,
        student=shared.spec,
        photos=shared.photos,
        tests=shared.sets[0],
        cache=cache,
    )
    step = run.step(distill, inputs, label=label)
    scores = run.step(assess, AssessInputs(step, shared.sets), label=label).value
    made = step.value
    receipt = run.receipts().get(f"distill {label}")
    peak = receipt.peak_rss_bytes if receipt else None
    trained = Trained(
        arm.name, seed, made.steps, made.seconds, peak, made.curves, scores, arm.budget_s
    )
    return trained, made.model


def _trainings(
    study: StudyConfig, base: DistillConfig, entered: Sequence[Arm]
) -> Iterator[tuple[Arm, int]]:
    """Seed by seed, so that a study that is cut short has whole comparisons."""
    for seed in range(base.seed, base.seed + study.seeds):
        for arm in entered:
            yield arm, seed
