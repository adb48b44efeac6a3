"""The nets that go through a run: the student, the baselines of `--compare`, the teacher."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from mipkd.core.errors import UsageError
from mipkd.core.records import (
    Distilled,
    Graph,
    Model,
    PatchSet,
    QuantPlan,
    Rival,
    StudentSearch,
    TeacherCache,
)
from mipkd.distill import ranks
from mipkd.distill.settings import DistillConfig
from pipeline import caching
from pipeline.bench.distillation_gain import is_rival
from pipeline.config import Config, is_file
from pipeline.context import RunContext
from pipeline.inputs import (
    Images,
    Nets,
    adopt_graph,
    check_scale,
    identify_checkpoint,
    is_graph,
    sources_with_truth,
)
from pipeline.quantize.search import check_floats
from pipeline.stage import Ref
from pipeline.stages.distill import DistillInputs, distill
from pipeline.stages.export import ExportInputs, export
from pipeline.student_latency import AutoTask
from pipeline.student_search import search_student
from pipeline.study import settings_for_method

log = logging.getLogger(__name__)

_NOT_OF_A_NAME = re.compile(r"[^\w.+-]")  # names are parts of file names


@dataclass(frozen=True)
class Baseline:
    """What the student is compared with, as asked for: how to teach it, or the file it is in."""

    name: str
    taught: DistillConfig | None
    file: Path | None


@dataclass(frozen=True)
class Contender:
    """A net on its way through the run; None is what it has not, or not yet."""

    name: str  # its role
    distilled: Ref[Distilled] | None = None
    model: Ref[Model] | None = None  # as it was given
    graph: Ref[Graph] | None = None  # a baseline without one could not be made
    plans: tuple[Ref[QuantPlan], ...] = ()
    search: StudentSearch | None = None  # how `--student auto` came to it

    @property
    def net(self) -> Ref[Distilled] | Ref[Model] | None:
        """Its weights for torch; None where it came as a graph."""
        return self.distilled or self.model

    @property
    def described(self) -> Model | None:
        """What it is; None while it is only planned, or if it could not be made."""
        if self.distilled:
            return self.distilled.record.model if self.distilled.record else None
        if self.model:
            return self.model.record
        return _of_graph(self.graph.record) if self.graph and self.graph.record else None

    @property
    def int8(self) -> tuple[QuantPlan, ...]:
        """How it is quantised, target by target."""
        return tuple(ref.value for ref in self.plans)

    @property
    def as_rival(self) -> Rival:
        """For the report."""
        distilled = self.distilled.value if self.distilled else None
        return Rival(self.name, self.described, distilled, self.int8)


def parse_baselines(config: Config) -> tuple[Baseline, ...]:
    """The baselines of a configuration, before any work.

    Raises:
        UsageError: an unknown method or the student's own, no such file, a method where nothing
            is trained, two of one name, or a gate on the gain over nobody.
    """
    found: dict[str, str] = {}
    baselines = []
    for item in config.compare:
        one = _parse_baseline(item, config)
        if not is_rival(one.name) or one.name in found:
            other = found.get(one.name, f"the run's own {one.name}")
            raise UsageError(
                f"--compare: {item} would be called {one.name!r}, as {other} is",
                hint="name each once; a file is called by its name: rename it",
            )
        found[one.name] = item
        baselines.append(one)
    if not baselines and config.gates.min_gain_retained != "off":
        raise UsageError(
            "gates.min_gain_retained: there is nobody to have a gain over",
            hint="--compare scratch",
        )
    return tuple(baselines)


def _parse_baseline(item: str, config: Config) -> Baseline:
    if is_file(item):
        file = Path(item)
        if not file.is_file():
            near = difflib.get_close_matches(file.name, _beside(file), n=1)
            raise UsageError(
                f"--compare: {item}: no such file",
                hint=f"did you mean {file.with_name(near[0])}?" if near else "check its path",
            )
        return Baseline(_NOT_OF_A_NAME.sub("-", file.stem), None, file)
    taught = settings_for_method(item, config.distill, setting="--compare")
    if config.model:
        raise UsageError(
            f"--compare: {item} would have to be trained, and --model trains nothing",
            hint="give the checkpoint of a finished student, or leave out --model",
        )
    if taught.build_losses() == config.distill.build_losses():
        raise UsageError(
            f"--compare: {item} is how the student itself is taught",
            hint="--compare scratch,mipkd",
        )
    return Baseline(item, taught, None)


def _beside(file: Path) -> list[str]:
    return [one.name for one in file.parent.iterdir()] if file.parent.is_dir() else []


def identify_baselines(
    on: RunContext, baselines: Sequence[Baseline], nets: Nets
) -> Iterator[tuple[Baseline, Contender]]:
    """Each baseline with what its file holds; nothing is trained yet.

    Raises:
        MipkdError: a file that is no net, or one of another scale.
    """
    images, photos = sources_with_truth(on)
    for one in baselines:
        foreign = is_graph(one.file)
        file = None if foreign else one.file
        model = identify_checkpoint(on, "student", file, photos, label=one.name)
        graph = adopt_graph(on, one.file if foreign else None, images, one.name)
        check_scale(f"--compare: {one.file}", model or graph, nets.like)
        yield one, Contender(one.name, model=model, graph=graph)


def train_and_export(
    on: RunContext,
    nets: Nets,
    images: Images,
    patches: Ref[PatchSet],
    baselines: Sequence[tuple[Baseline, Contender]],
) -> list[Contender]:
    """The student first, then each baseline, made as the student was, then the teacher.

    A failure of a baseline or of the teacher's export is a row of the report.

    Raises:
        MipkdError: what the student cannot be made for.
    """
    trainer = _Trainer(on, nets.teacher, images)
    if nets.teacher and not (nets.model or nets.graph):
        taught = {one.name: one.taught for one, _ in baselines if one.taught}
        trainer = trainer.with_student(patches, taught)
        distilled = trainer.distill("student", on.config.distill)
        student = Contender("student", distilled, search=trainer.search)
    else:
        student = Contender("student", model=nets.model, graph=nets.graph)
    student = replace(student, graph=student.graph or trainer.export(student))
    if student.graph and student.graph.record:
        check_floats(on.config.quantize, student.graph.record)
    found = [student]
    for one, contender in baselines:
        found.append(trainer.make_baseline(one, contender))
        _warn_of_budget(student, found[-1])
    if nets.teacher:
        teacher = Contender("teacher", model=nets.teacher)
        with on.catch("onnx", "fp32", "export", "teacher"):
            found.append(replace(teacher, graph=trainer.export(teacher)))
    return found


@dataclass(frozen=True)
class _Trainer:
    """Makes graphs of nets, and trains those that are to be taught."""

    on: RunContext
    teacher: Ref[Model] | None
    images: Images
    spec: str | None = None
    search: StudentSearch | None = None
    caches: Mapping[str, Ref[TeacherCache] | None] = field(default_factory=dict)

    def with_student(self, patches: Ref[PatchSet], taught: Mapping[str, DistillConfig]) -> _Trainer:
        """Knowing the student, and what is kept of the teacher for each training."""
        assert self.teacher is not None
        trainings = {"student": self.on.config.distill, **taught}
        images, search, spec = self.images, None, self.on.config.student
        if spec == "auto":
            search = search_student(AutoTask(self.on, self.teacher, images, patches, trainings))
            spec = search.spec if search else None  # only planned: which one is not known
        planned = sum(prod(size) for size in images.sizes.photos) if images.sizes else None
        subject = caching.Subject(
            self.on.run, self.teacher, spec, images.photos, images.tests, planned
        )
        caches = caching.keep_teacher(subject, trainings)
        return replace(self, spec=spec, search=search, caches=caches)

    def distill(self, name: str, config: DistillConfig) -> Ref[Distilled]:
        assert self.teacher is not None
        inputs = DistillInputs(
            config=config,
            teacher=self.teacher,
            student=self.spec,
            photos=self.images.photos,
            tests=self.images.tests,
            cache=self.caches[name],
        )
        return self.on.run.step(distill, inputs, label="" if name == "student" else name)

    def export(self, one: Contender) -> Ref[Graph]:
        assert one.net is not None, "what is exported is a net in torch"
        ours = one.name in ("student", "teacher")
        inputs = ExportInputs(
            config=self.on.config.export,
            net=one.net,
            teacher=self.teacher,
            tests=self.images.tests,
            baseline="" if ours else one.name,
        )
        return self.on.run.step(export, inputs, label=one.name)

    def make_baseline(self, baseline: Baseline, one: Contender) -> Contender:
        if baseline.taught:
            # Of several processes that train, nobody knows what the others are at after a failure.
            alone = ranks.current().count == 1
            row = self.on.catch("torch", "fp32", "distill", one.name) if alone else nullcontext()
            with row:
                one = replace(one, distilled=self.distill(one.name, baseline.taught))
        if one.net:
            with self.on.catch("onnx", "fp32", "export", one.name):
                one = replace(one, graph=self.export(one))
        return one


def _warn_of_budget(student: Contender, baseline: Contender) -> None:
    """Warn where a gain is not that of the method alone."""
    ours, theirs = student.described, baseline.described
    if ours and theirs and ours.params != theirs.params:
        log.warning(
            "--compare: %s has %s parameters, the student %s: the budget is not the same",
            baseline.name,
            *(f"{m.params:,}" if m.params else "an unknown number of" for m in (theirs, ours)),
        )


def _of_graph(graph: Graph) -> Model:
    """All that is known of a net that came as a graph."""
    return Model(
        role="student",
        file=graph.file,
        sha256=graph.sha256,
        arch=graph.family,
        hyper={},
        scale=graph.scale,
        layout="onnx",
        settled={},
        params=0,
        gmacs=0.0,
        licence=graph.licence,
    )
