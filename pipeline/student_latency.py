"""Which students a latency budget has room for: nets of random weights are timed on the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from math import inf, prod

from mipkd.core.errors import UnsupportedError
from mipkd.core.records import Model, PatchSet
from mipkd.distill.settings import DistillConfig
from pipeline.bench.comparisons import Size
from pipeline.context import RunContext
from pipeline.inputs import Images
from pipeline.stage import Foreseen, NotInKey, Ref
from pipeline.stages.fit import FitInputs, Timed, fit
from pipeline.stages.rung import rung
from pipeline.student_grid import find_largest, gmacs_of, grids_for
from targets.base import find

_TOO_SLOW = 1.5  # times the budget, from where a net that is only computed to be so is not timed


class OnlyPlannedError(Exception):
    """What comes next depends on a step that has not run; the plan says what it is."""


@dataclass(frozen=True)
class AutoTask:
    """What `--student auto` chooses a student for."""

    on: RunContext
    teacher: Ref[Model]
    images: Images
    patches: Ref[PatchSet]
    trainings: Mapping[str, DistillConfig]  # those that follow; the student's is "student"

    @property
    def budget_ms(self) -> float:
        """What a gate will ask of the p90."""
        limit = self.on.config.gates.max_latency_ms
        assert limit != "off", "a run without a budget was refused"
        return limit

    @property
    def size(self) -> Size:
        """LR height and width at which it will."""
        return self.on.config.gates.size or max(self.on.config.bench.sizes, key=prod)

    @property
    def budget(self) -> str:
        """In words."""
        return f"{self.budget_ms:g} ms at LR {self.size[1]}x{self.size[0]}"

    @property
    def steps(self) -> int:
        """Of all short trainings together."""
        return self.on.config.fit.steps or self.trainings["student"].steps


@dataclass
class Timer:
    """What nets take on every target, each timed once."""

    task: AutoTask
    timed: dict[str, dict[str, tuple[Timed, ...]]] = field(default_factory=dict)  # spec, target
    gmacs: dict[str, float] = field(default_factory=dict)  # by spec
    _fitting: list[str] = field(default_factory=list)  # all that fit

    def find_largest(self) -> list[list[str]]:
        """Of each family the largest sizes within the budget; of a user's own list all.

        Raises:
            UnsupportedError: there is none.
            OnlyPlannedError: a net has not been timed yet.
        """
        if self.task.teacher.record is None:
            raise self._only_planned()
        if listed := self.task.on.config.fit.candidates:
            found = [[spec] for spec in dict.fromkeys(listed) if self.fits(spec)]
        else:
            grids = grids_for(self.task.teacher.value)
            found = [find_largest(grid, self.fits) for grid in grids]
        if not any(found):
            raise self._explain_none()
        return found

    def take_nearest(self, fitting: Sequence[Sequence[str]], most: int) -> list[str]:
        """At most so many, those nearest to the budget, from each family in turn."""
        ordered = [sorted(family, key=self.slowest_ms, reverse=True) for family in fitting]
        return [spec for spec in chain(*zip_longest(*ordered)) if spec][:most]

    def fits(self, spec: str) -> bool:
        """Whether it is smaller than the teacher, and in time on every target."""
        teacher, targets = self.task.teacher.value, self.task.on.targets
        self.gmacs[spec] = gmacs_of(teacher, spec)
        if self.gmacs[spec] >= teacher.gmacs or self._must_be_slow(spec):
            return False
        self.timed[spec] = {info.target: self._time(spec, n) for n, info in enumerate(targets)}
        well = all(
            any(one.most_ms <= self.task.budget_ms for one in found)
            for found in self.timed[spec].values()
        )
        self._fitting += [spec] if well else []
        return well

    def slowest_ms(self, spec: str) -> float:
        """p90 of the fastest precision, on the target where that is slowest."""
        taken = self.timed[spec].values()
        return max(found[0].p90_ms if found else inf for found in taken)

    def why_not_trained(self, spec: str) -> str:
        """Of a net that was timed and not trained."""
        if bad := [target for target, found in self.timed[spec].items() if not found]:
            return f"could not be built or timed on {bad[0]}"
        if spec in self._fitting:
            return "a larger one of its family fits, or fit.nets others are nearer to the budget"
        if self.slowest_ms(spec) <= self.task.budget_ms:
            return "too slow: the 95 % interval of its p90 reaches over the budget"
        return "too slow"

    def _must_be_slow(self, spec: str) -> bool:
        """Whether it would be too slow if time were in proportion to the arithmetic of a larger
        one of its family that was: small nets take more time than that, not less."""
        family = spec.partition(":")[0] + ":"
        bound_ms = _TOO_SLOW * self.task.budget_ms
        return any(
            inf > self.slowest_ms(other) * self.gmacs[spec] / self.gmacs[other] > bound_ms
            for other in self.timed
            if other.startswith(family) and self.gmacs[other] >= self.gmacs[spec]
        )

    def _time(self, spec: str, target: int) -> tuple[Timed, ...]:
        on, info = self.task.on, self.task.on.targets[target]
        inputs = FitInputs(
            student=spec,
            size=self.task.size,
            info=info,
            precisions=on.precisions(info),
            teacher=self.task.teacher,
            patches=self.task.patches,
            machine=NotInKey(on.machine),
        )
        versions, label = find(info.target).versions(), f"{spec} {info.target}"
        found = on.run.step(fit, inputs, depends_on=versions, label=label)
        if found.record is None:
            raise self._only_planned(inputs)
        return found.record

    def _only_planned(self, first: FitInputs | None = None) -> OnlyPlannedError:
        """Tell the plan of the timings that follow the first, and of all trainings."""
        on, config = self.task.on, self.task.on.config.fit
        grids = grids_for(self.task.teacher.record)
        nets = len(config.candidates) or sum(len(one.widths) * len(one.depths) for one in grids)
        # As `student_grid.find_largest` does.
        many = len(config.candidates) or sum(len(g.widths) + len(g.depths) - 1 for g in grids)
        note = f"up to {many} of {nets} nets, to see which keep {self.task.budget}"
        left = max(0, (many - len(self.timed)) * len(on.targets) - 1)
        if left:
            on.run.foresee(fit, Foreseen(left, first), note=note)
        trained = min(config.nets, many)
        if trained > 1:
            note = f"up to {trained} nets, {self.task.steps:,} steps together, half go on each time"
            on.run.foresee(rung, Foreseen(self.task.steps), note=note)
        return OnlyPlannedError()

    def _explain_none(self) -> UnsupportedError:
        what = f"--latency-budget: no student has a p90 of {self.task.budget}: "
        everywhere = [spec for spec, found in self.timed.items() if all(found.values())]
        if not everywhere:
            return UnsupportedError(
                f"{what}none that is smaller than the teacher could be built and timed",
                hint="name a student: --student edge:c16b4",
            )
        quickest = min(everywhere, key=self.slowest_ms)
        target, (one, *_) = max(self.timed[quickest].items(), key=lambda item: item[1][0].p90_ms)
        return UnsupportedError(
            f"{what}the quickest, {quickest}, takes {one.p90_ms:.3g} ms on {target} in "
            f"{one.precision} (95 % interval up to {one.most_ms:.3g})",
            hint="raise the budget, or lower the size: --size 160x90",
        )
