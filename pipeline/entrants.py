"""The nets that go through a run: the student, the rivals of `--compare`, the teacher."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from mipkd.core.errors import UsageError
from mipkd.core.records import (
    Distilled,
    Failure,
    Graph,
    Model,
    Photos,
    QuantPlan,
    Rival,
    TeacherCache,
    TestSet,
)
from mipkd.distill import ranks
from mipkd.distill.settings import DistillConfig
from pipeline import given
from pipeline.bench.gain import is_rival
from pipeline.config import Config, is_file
from pipeline.rows import row
from pipeline.run import Ref, Run, Source
from pipeline.stages.distill import distill
from pipeline.stages.export import export
from pipeline.study import by_method

log = logging.getLogger(__name__)

_NOT_OF_A_NAME = re.compile(r"[^\w.+-]")  # names are parts of file names


@dataclass(frozen=True)
class Named:
    """A rival as it was asked for: how it is to be taught, or the file that it is in."""

    name: str
    taught: DistillConfig | None
    file: Path | None


@dataclass(frozen=True)
class Entrant:
    """A net on its way through the run; None is what it has not, or not yet."""

    name: str  # its role
    distilled: Ref[Distilled] | None = None
    model: Ref[Model] | None = None  # as it was given
    graph: Ref[Graph] | None = None  # a rival without one could not be made
    plans: tuple[Ref[QuantPlan], ...] = ()

    @property
    def source(self) -> Ref[Distilled] | Ref[Model] | None:
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


def named(config: Config) -> tuple[Named, ...]:
    """The rivals of a configuration, before any work.

    Raises:
        UsageError: an unknown method or the student's own, no such file, a method where nothing
            is trained, two of one name, or a gate on the gain over nobody.
    """
    found: dict[str, str] = {}
    rivals = []
    for item in config.compare:
        one = _named(item, config)
        if not is_rival(one.name) or one.name in found:
            other = found.get(one.name, f"the run's own {one.name}")
            raise UsageError(
                f"--compare: {item} would be called {one.name!r}, as {other} is",
                hint="name each once; a file is called by its name: rename it",
            )
        found[one.name] = item
        rivals.append(one)
    if not rivals and config.gates.min_gain_retained != "off":
        raise UsageError(
            "gates.min_gain_retained: there is nobody to have a gain over",
            hint="--compare scratch",
        )
    return tuple(rivals)


def _named(item: str, config: Config) -> Named:
    if is_file(item):
        file = Path(item)
        if not file.is_file():
            near = difflib.get_close_matches(file.name, _beside(file), n=1)
            raise UsageError(
                f"--compare: {item}: no such file",
                hint=f"did you mean {file.with_name(near[0])}?" if near else "check its path",
            )
        return Named(_NOT_OF_A_NAME.sub("-", file.stem), None, file)
    taught = by_method(item, config.distill, setting="--compare")
    if config.model:
        raise UsageError(
            f"--compare: {item} would have to be trained, and --model trains nothing",
            hint="give the checkpoint of a rival, or leave out --model",
        )
    if taught.build_losses() == config.distill.build_losses():
        raise UsageError(
            f"--compare: {item} is how the student itself is taught",
            hint="--compare scratch,mipkd",
        )
    return Named(item, taught, None)


def _beside(file: Path) -> list[str]:
    return [one.name for one in file.parent.iterdir()] if file.parent.is_dir() else []


def entered(
    config: Config,
    run: Run,
    rivals: Sequence[Named],
    images: Source | None,
    like: Ref[Model] | Ref[Graph],
) -> Iterator[tuple[Named, Entrant]]:
    """Each rival with what its file holds; nothing is trained yet.

    Raises:
        MipkdError: a file that is no net, or one of another scale.
    """
    for one in rivals:
        foreign = given.is_graph(one.file)
        file = None if foreign else one.file
        model = given.checkpoint(config, run, "student", file, images, label=one.name)
        graph = given.graph(config, run, one.file if foreign else None, images, one.name)
        given.check_scale(f"--compare: {one.file}", model or graph, like)
        yield one, Entrant(one.name, model=model, graph=graph)


def made(
    config: Config,
    run: Run,
    rival: tuple[Named, Entrant],
    spec: str | None,
    teacher: Ref[Model] | None,
    pixels: Ref[Photos],
    tests: Ref[TestSet],
    caches: Mapping[str, Ref[TeacherCache] | None],
    failures: list[Failure],
) -> Entrant:
    """A rival, trained and exported as the student was; a failure is a row of the report."""
    one, entrant = rival
    if one.taught:
        # Of several processes that train, nobody knows what the others are at after a failure.
        alone = ranks.current().count == 1
        failing = row(failures, "torch", "fp32", "distill", one.name) if alone else nullcontext()
        with failing:
            inputs = (teacher, spec, pixels, tests, caches[one.name])
            distilled = run.step(distill, one.taught, *inputs, label=one.name)
            entrant = replace(entrant, distilled=distilled)
    if source := entrant.source:
        with row(failures, "onnx", "fp32", "export", one.name):
            graph = run.step(
                export, config.export, source, teacher, tests, one.name, label=one.name
            )
            entrant = replace(entrant, graph=graph)
    return entrant


def tell_of_budget(student: Entrant, rival: Entrant) -> None:
    """Warn where a gain is not that of the method alone."""
    ours, theirs = student.described, rival.described
    if ours and theirs and ours.params != theirs.params:
        log.warning(
            "--compare: %s has %s parameters, the student %s: the budget is not the same",
            rival.name,
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
