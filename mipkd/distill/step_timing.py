"""How long the steps of several trainings take on this machine, timed in turns."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from time import perf_counter

from mipkd.core.errors import MipkdError
from mipkd.core.study import Pace
from mipkd.distill import ranks
from mipkd.distill.compile import should_compile
from mipkd.distill.gpu_sampler import choose_sampler
from mipkd.distill.latent_directions import read_cache_directions
from mipkd.distill.settings import DistillConfig
from mipkd.distill.train_step import Learner
from mipkd.distill.training_task import TrainingTask, open_training

log = logging.getLogger(__name__)

_PLACES = 6  # in the schedule: a loss may end before the training does
_ROUNDS = 4  # through all places; the first one warms up


@ranks.run_on_all
def time_steps(
    configs: Mapping[str, DistillConfig],
    tasks: Mapping[str, TrainingTask],
    *,
    places: int = _PLACES,
    rounds: int = _ROUNDS,
) -> dict[str, Pace]:
    """The pace of each training, by name, or why it failed. No weights are kept.

    It is timed at `places` in the schedule, evenly spread, in all rounds but the first.
    """
    timed: dict[str, _TimedTraining] = {}
    failed: dict[str, Pace] = {}
    for name, config in configs.items():
        with _note_failure(name, failed):
            timed[name] = _TimedTraining(config, tasks[name], places)
    for number, place, name in product(range(rounds), range(places), timed):
        if name not in failed:
            with _note_failure(name, failed):
                timed[name].advance(place, record=number > 0)
    return {name: one.pace() for name, one in timed.items() if name not in failed} | failed


class _TimedTraining:
    """A training that is advanced at chosen places of its schedule."""

    def __init__(self, config: DistillConfig, task: TrainingTask, places: int) -> None:
        start = perf_counter()
        opened = open_training(config, task)
        principal, mine = read_cache_directions(task.cache), ranks.current()
        nets, truth = (opened.student, opened.teacher), opened.sampler.has_truth
        self._learner = Learner(opened.config, *nets, principal=principal, truth=truth)
        self._learner.start(opened.sampler)
        self._sampler = choose_sampler(
            opened.sampler.share(mine.rank, mine.count), self._learner.device
        )
        self._learner.advance(self._sampler)
        self._start_s = perf_counter() - start
        self._seconds: list[list[float]] = [[] for _ in range(places)]

    def advance(self, place: int, *, record: bool) -> None:
        """Two steps there; the first, which may have to prepare for the place, is not timed."""
        at = int((place + 0.5) / len(self._seconds) * self._learner.config.steps)
        self._learner.step = at
        self._learner.advance(self._sampler)
        self._learner.step = at  # again: the next step may be past the end of a short training
        start = perf_counter()
        self._learner.advance(self._sampler)
        if record:
            self._seconds[place].append(perf_counter() - start)

    def pace(self) -> Pace:
        """The median over the rounds at each place, and the mean over the places."""
        step_s = statistics.fmean(statistics.median(found) for found in self._seconds)
        compiled = should_compile(self._learner.config, self._learner.device)
        return Pace(max(0.0, self._start_s - step_s), step_s, compiled)


@contextmanager
def _note_failure(name: str, failed: dict[str, Pace]) -> Iterator[None]:
    try:
        yield
    except MipkdError as error:
        if ranks.current().count > 1:
            raise  # the other processes' state is unknown
        log.error("%s: %s", name, error.what)
        failed[name] = Pace(0.0, 0.0, why_not=error.what)
