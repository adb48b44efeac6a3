"""What happens on one target: INT8 is planned, every precision built, and all of it measured."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from mipkd.core.errors import UnsupportedError
from mipkd.core.evidence import Failure
from mipkd.core.measurement import Measurement
from mipkd.core.precision import PRECISIONS
from mipkd.core.records import Built, Graph, Model, PatchSet, QatStudent, QuantPlan, TargetInfo
from pipeline.bench.distillation_gain import is_rival
from pipeline.contenders import Contender
from pipeline.context import RunContext
from pipeline.failures import record_failure
from pipeline.inputs import Images
from pipeline.quantize.hold_out import HoldOutInputs, hold_out
from pipeline.quantize.qat import QatInputs, qat
from pipeline.quantize.search import SearchInputs, check_floats, search
from pipeline.stage import NotInKey, Ref
from pipeline.stages.build import BuildInputs, build
from pipeline.stages.measure import MeasureInputs, measure
from targets.base import Feature, find

log = logging.getLogger(__name__)

Measured = Ref[tuple[Measurement, ...]]


@dataclass
class OnTarget:
    """One target's models: what was planned, built and measured of each contender."""

    on: RunContext
    info: TargetInfo
    images: Images
    patches: Ref[PatchSet]
    teacher: Ref[Model] | None  # that may teach a student that is trained on for INT8
    plans: dict[str, Ref[QuantPlan]] = field(default_factory=dict)  # by contender
    builts: list[tuple[str, Ref[Built]]] = field(default_factory=list)  # with their contenders
    measured: list[Measured] = field(default_factory=list)

    def build(self, contenders: Sequence[Contender]) -> None:
        """Every contender at every precision; what fails, or crashes, is a row of the report."""
        with self.on.run.one_process():
            for one, precision in self._select_builds(contenders):
                with self.on.catch(self.info.target, precision, "build", one.name):
                    self.builts.append((one.name, self._build(one, precision)))

    def measure(self) -> None:
        """All models in one job; if that fails, once more without the baselines."""
        target, failures = self.info.target, self.on.failures
        baselines = list(dict.fromkeys(name for name, _ in self.builts if is_rival(name)))
        if baselines:
            trouble = list[Failure]()
            with record_failure(trouble, target, "all", "measure", ", ".join(baselines)):
                self.measured.append(self._measure([built for _, built in self.builts]))
                return
            failures += [replace(trouble[0], role=name) for name in baselines]
        with self.on.catch(target, "all", "measure", "student"):
            ours = [built for name, built in self.builts if not is_rival(name)]
            self.measured.append(self._measure(ours))

    def _select_builds(self, contenders: Sequence[Contender]) -> Iterator[tuple[Contender, str]]:
        """What to build: students at every precision asked for, the teacher in the float ones."""
        for precision in self.on.config.precision or ():
            if precision not in self.info.precisions:
                offered = ", ".join(self.info.precisions)
                log.warning("%s has no %s (%s): left out", self.info.target, precision, offered)
        asked = self.on.precisions(self.info)
        for one in (one for one in contenders if one.graph):
            for precision in asked:
                if one.name != "teacher" or PRECISIONS[precision].is_float:
                    yield one, precision

    def _build(self, one: Contender, precision: str) -> Ref[Built]:
        assert one.graph is not None, "what is built has a graph"
        config, name = self.on.config, self.info.target
        plan = None
        if precision == "int8" and self.on.plans_int8(self.info):
            plan = self.plans[one.name] = self._plan(one, one.graph)
        elif precision == "int8" and one.name == "student":
            self._warn_of_unused()
        patches = self.patches if PRECISIONS[precision].reads_patches else None
        photos = NotInKey[Ref[PatchSet] | None](self.patches)
        info = replace(self.info, settings={})  # another power mode makes no other model
        inputs = BuildInputs(
            config.build, precision, info, one.graph, patches, plan, photos, self._sizes()
        )
        key, label = find(name).versions(), f"{name} {one.name} {precision}"
        return self.on.run.step(build, inputs, depends_on=key, label=label)

    def _sizes(self) -> tuple[tuple[int, int], ...]:
        """LR sizes that models are built for, where the target does that: the one that is judged,
        the others that are measured, tiles."""
        if Feature.SIZES not in find(self.info.target).features:
            return ()
        measured, tile = self.on.config.bench.sizes, self.on.config.build.tile
        judged = self.on.config.gates.size or max(measured, key=prod)
        return tuple(dict.fromkeys((judged, *measured, *([(tile, tile)] if tile else ()))))

    def _measure(self, some: Sequence[Ref[Built]]) -> Measured:
        on = self.on
        machine, tests = NotInKey(on.machine), self.images.tests
        inputs = MeasureInputs(on.config.bench, self.info, tuple(some), tests, machine)
        return on.run.step(measure, inputs, label=self.info.target)

    def _warn_of_unused(self) -> None:
        """What was asked for and INT8 by a fixed recipe does not heed."""
        config = self.on.config
        asked = {"--qat": config.qat.run, "quantize.float": bool(config.quantize.float)}
        if left := [name for name, wanted in asked.items() if wanted]:
            unused = " and ".join(left)
            log.warning("%s: INT8 by its fixed recipe leaves out %s", self.info.target, unused)

    def _plan(self, one: Contender, graph: Ref[Graph]) -> Ref[QuantPlan]:
        """Which layers stay float, once the net has been made to bear the target's INT8."""
        config, run = self.on.config, self.on.run
        if graph.record:
            check_floats(config.quantize, graph.record)
        images, seed = self.images, config.calibrate.seed
        crops = config.quantize.holdout
        cut = HoldOutInputs(crops, images.photos, seed, images.reference, images.against)
        held = run.step(hold_out, cut)
        tuned: Ref[QatStudent] | None = None
        name, versions = self.info.target, self.info.versions
        label = f"{name} {one.name}" if is_rival(one.name) else name
        if config.qat.run:
            if one.net is None:  # the student's own was refused before
                raise UnsupportedError(
                    f"qat: {one.name} came as a graph, which cannot be trained",
                    hint="give its checkpoint to --compare, or leave out --qat",
                )
            by_teacher = config.qat.taught_by == "teacher"
            lessons = QatInputs(
                config=config.qat,
                target=name,
                net=one.net,
                teacher=self.teacher if by_teacher else None,
                graph=graph,
                patches=self.patches,
                photos=self.images.photos,
                holdout=held,
                split_seed=config.calibrate.seed,
                size=config.quantize.size,
            )
            tuned = run.step(qat, lessons, depends_on=versions, label=label)
        inputs = SearchInputs(config.quantize, name, graph, self.patches, held, tuned)
        return run.step(search, inputs, depends_on=[versions, self.on.host], label=label)
