"""`--student auto`: of the nets that a latency budget has room for, the one that learns best.

Those that fit are trained by successive halving. Why so: docs/decisions/0040-student-auto.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2, prod

import numpy as np

from mipkd.core.errors import MipkdError
from mipkd.core.records import Holdout, StudentSearch, TeacherCache, TriedStudent
from mipkd.distill import ranks
from pipeline import caching
from pipeline.quantize.hold_out import HoldOutInputs, hold_out
from pipeline.stage import Foreseen, Ref
from pipeline.stages.rung import Rung, RungInputs, rung
from pipeline.student_latency import AutoTask, OnlyPlannedError, Timer

log = logging.getLogger(__name__)

_MOST_KEPT = 0.8  # of what a doubling of the steps brings, by the next one
_FEW = 100  # steps of a net in the first rung, from where they tell nets apart


def search_student(task: AutoTask) -> StudentSearch | None:
    """The student that is best within the budget on all targets; None while it is only planned.

    Raises:
        UnsupportedError: no student keeps the budget.
        MipkdError: none of those that do could be trained.
    """
    timer = Timer(task)
    try:
        fitting = timer.find_largest()
        halving = _Halving(task, timer.take_nearest(fitting, task.on.config.fit.nets))
        halving.run()
    except OnlyPlannedError:
        return None
    found = _record(task, timer, halving)
    took = f"p90 {timer.slowest_ms(found.spec):.3g} ms"
    log.info("student: %s, %s; the budget is %s", found.spec, took, task.budget)
    return found


def rung_ends(steps: int, nets: int) -> tuple[int, ...]:
    """The step that each rung of successive halving trains its nets to, with `steps` in all.

    Each rung has the same share of them; half of its nets, rounded up, go on.
    """
    rungs, ends, at = ceil(log2(nets)), list[int](), 0
    for _ in range(rungs):
        at += max(1, steps // (rungs * nets))
        ends.append(at)
        nets = ceil(nets / 2)
    return tuple(ends)


def foretell(steps: Sequence[int], psnr_y_db: Sequence[float], at: int) -> float:
    """PSNR-Y in dB at a later step: each doubling of the steps brings less than the one before, in
    the ratio in which the last one did, but for the first steps of a steep curve. A curve that fell
    last stays where it is."""
    points = [(step, psnr) for step, psnr in zip(steps, psnr_y_db, strict=True) if step]
    logs, end = np.log2([step for step, _ in points]), log2(steps[-1])
    early, middle, now = np.interp([end - 2, end - 1, end], logs, [psnr for _, psnr in points])
    rise = float(now - middle)
    if rise <= 0:
        return float(now)
    before, doublings = float(middle - early), log2(at) - end
    ratio = min(_MOST_KEPT, rise / before) if before > 0 else _MOST_KEPT
    more_db: float = rise * ratio * (1 - ratio**doublings) / (1 - ratio)
    return float(now) + more_db


@dataclass(frozen=True)
class _Score:
    """What a net had after a rung, and what that foretells."""

    psnr_y_db: float
    foretold_db: float  # for the end of the next rung; after the last, of the training


class _Halving:
    """Rungs of short trainings; the better half of a rung's nets goes on."""

    def __init__(self, task: AutoTask, specs: Sequence[str]) -> None:
        self.task, self.left = task, list(specs)
        self.ends = rung_ends(task.steps, len(specs))
        self.scores: dict[str, list[_Score]] = {spec: [] for spec in specs}
        self.dropped: dict[str, str] = {}
        self.held: Ref[Holdout] | None = None
        self._split_seed = task.on.config.calibrate.seed
        training = task.trainings["student"]
        # What each rung is foretold for.
        self._next = (*self.ends[1:], max((training.steps, *self.ends)))
        steps = max((1, *self.ends))
        changed = {"steps": steps, "schedule": "constant", "validate_every": steps}
        self._config = training.model_copy(update=changed)

    def run(self) -> None:
        """Rung by rung, until one net is left.

        Raises:
            MipkdError: no net of a rung could be trained.
            OnlyPlannedError: a rung has not been run yet.
        """
        if not self.ends:
            log.info("student: %s alone fits: nothing is trained to choose", self.left[0])
            return
        self._announce()
        images, crops = self.task.images, self.task.on.config.quantize.holdout
        seed, stands_for_truth = self._split_seed, (images.reference, images.against)
        cut = HoldOutInputs(crops, images.photos, seed, *stands_for_truth)
        self.held = self.task.on.run.step(hold_out, cut)
        cache, before = self._keep_images(), dict[str, Ref[Rung]]()
        for number in range(len(self.ends)):
            before = self._train_rung(number, before, self.held, cache)
            if any(one.record is None for one in before.values()):
                self._foresee(len(self.ends) - number - 1)
                raise OnlyPlannedError
            self._rank(number, before)
            if len(self.left) == 1:  # others failed
                break

    def _announce(self) -> None:
        """Tell the budget, and what is too little of it."""
        nets, ends = len(self.left), ", ".join(f"{end:,}" for end in self.ends)
        log.info(
            "student: %d nets are trained, from rung to rung half as many, to steps %s; %s steps "
            "in all, seed %d",
            *(nets, ends, f"{self.task.steps:,}", self._config.seed),
        )
        if self.ends[0] < _FEW:
            log.warning(
                "--student auto: after %d steps each %d nets can hardly be told apart: "
                "--set fit.steps=%d gives them %d, --set fit.nets=4 more steps to fewer",
                *(self.ends[0], nets, len(self.ends) * _FEW * nets, _FEW),
            )

    def _keep_images(self) -> Ref[TeacherCache] | None:
        """The teacher's images of all photos; latents depend on which student reads them."""
        losses = self._config.build_losses().values()
        if any(loss.reads == "latents" for loss in losses):
            return None
        task, images = self.task, self.task.images
        planned = sum(prod(size) for size in images.sizes.photos) if images.sizes else None
        nets = task.teacher, self.left[0]
        subject = caching.Subject(task.on.run, *nets, images.photos, images.tests, planned)
        together = self._config.model_copy(update={"steps": task.steps})
        return caching.keep_teacher(subject, {"": together, **task.trainings})[""]

    def _train_rung(
        self,
        number: int,
        before: Mapping[str, Ref[Rung]],
        held: Ref[Holdout],
        cache: Ref[TeacherCache] | None,
    ) -> dict[str, Ref[Rung]]:
        """Every net that is left, a little further; one that cannot be trained is dropped."""
        task, found, failures = self.task, dict[str, Ref[Rung]](), list[MipkdError]()
        for spec in self.left:
            inputs = RungInputs(
                config=self._config,
                until=self.ends[number],
                teacher=task.teacher,
                student=spec,
                photos=task.images.photos,
                holdout=held,
                split_seed=self._split_seed,
                cache=cache,
                before=before.get(spec),
            )
            try:
                found[spec] = task.on.run.step(rung, inputs, label=f"{spec} {number + 1}")
            except MipkdError as error:
                if ranks.current().count > 1:
                    raise  # what the other processes are at is not known
                log.warning("%s: %s", spec, error.what)
                self.dropped[spec] = f"rung {number + 1}: {error.what}"
                failures.append(error)
        if not found:
            raise failures[0]
        return found

    def _rank(self, number: int, found: Mapping[str, Ref[Rung]]) -> None:
        """Keep the half that is foretold to be the better one."""
        at = self._next[number]
        for spec, one in ((spec, ref.value) for spec, ref in found.items()):
            ahead = foretell(one.steps, one.psnr_y_db, at)
            self.scores[spec].append(_Score(one.psnr_y_db[-1], ahead))
        ranked = sorted(found, key=lambda spec: -self.scores[spec][-1].foretold_db)
        kept = 1 if number + 1 == len(self.ends) else ceil(len(self.left) / 2)
        self.left = ranked[:kept]
        least_db = self.scores[self.left[-1]][-1].foretold_db
        for spec in ranked:
            score = self.scores[spec][-1]
            said = f"{score.foretold_db:.2f} dB foretold for step {at:,}"
            if spec not in self.left:
                self.dropped[spec] = f"rung {number + 1}: {said}, {least_db:.2f} were kept"
            what = "goes on" if spec in self.left else "dropped"
            line = "rung %d, step %s: %s has %.2f dB on the crops, %s: %s"
            end = f"{self.ends[number]:,}"
            log.info(line, number + 1, end, spec, score.psnr_y_db, said, what)

    def _foresee(self, rungs: int) -> None:
        """Tell a plan of the rungs that follow, whose nets are not known yet."""
        if rungs:
            steps = self.task.steps * rungs // len(self.ends)
            note = f"{rungs} more rungs, {steps:,} steps together"
            self.task.on.run.foresee(rung, Foreseen(steps), note=note)


def _record(task: AutoTask, timer: Timer, halving: _Halving) -> StudentSearch:
    """The nets that were timed: the chosen one first, then those that came furthest."""
    held = halving.held.value if halving.held else None
    tried = sorted(
        (_tried(spec, timer, halving) for spec in timer.timed),
        key=lambda one: (
            one.dropped != "",
            -len(one.psnr_y_db),
            -one.foretold_db[-1] if one.foretold_db else min(one.p90_ms.values(), default=0.0),
        ),
    )
    return StudentSearch(
        spec=halving.left[0],
        budget_ms=task.budget_ms,
        size=task.size,
        seed=task.trainings["student"].seed,
        steps=task.steps if halving.ends else 0,
        rungs=halving.ends,
        crops=held.photos if held else 0,
        tried=tuple(tried),
    )


def _tried(spec: str, timer: Timer, halving: _Halving) -> TriedStudent:
    scores = halving.scores.get(spec, [])
    fastest = {target: found[0] for target, found in timer.timed[spec].items() if found}
    why = halving.dropped.get(spec) or timer.why_not_trained(spec)
    return TriedStudent(
        spec=spec,
        gmacs=timer.gmacs[spec],
        p90_ms={target: one.p90_ms for target, one in fastest.items()},
        precision={target: one.precision for target, one in fastest.items()},
        psnr_y_db=tuple(one.psnr_y_db for one in scores),
        foretold_db=tuple(one.foretold_db for one in scores),
        dropped="" if spec == halving.left[0] else why,
    )
