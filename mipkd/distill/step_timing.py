"""How long steps of several trainings take on this machine, timed in turns."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping
from time import perf_counter

from mipkd.core.errors import MipkdError
from mipkd.core.records import Pace
from mipkd.distill import ranks
from mipkd.distill.compile import pays
from mipkd.distill.gpu_sampler import near
from mipkd.distill.latent_directions import principal_of
from mipkd.distill.settings import DistillConfig
from mipkd.distill.train_step import Learner
from mipkd.distill.training_task import Task, open_training

log = logging.getLogger(__name__)

_PLACES = 6  # of the schedule, evenly spread: a loss may rest for a part of it
_ROUNDS = 4  # through all places; the first one warms up


@ranks.together
def time_paces(configs: Mapping[str, DistillConfig], tasks: Mapping[str, Task]) -> dict[str, Pace]:
    """The pace of each training, by name; what fails says why. No weights are kept."""
    opened: dict[str, _Timed] = {}
    failed: dict[str, Pace] = {}
    for name, config in configs.items():
        try:
            opened[name] = _Timed(config, tasks[name])
        except MipkdError as error:
            failed[name] = _failure(name, error)
    for number in range(_ROUNDS):
        for place in range(_PLACES):
            for name, timed in list(opened.items()):
                try:
                    timed.advance(place, kept=number > 0)
                except MipkdError as error:
                    failed[name] = _failure(name, error)
                    del opened[name]
    return failed | {name: timed.pace() for name, timed in opened.items()}


class _Timed:
    """A training that is advanced here and there in its schedule."""

    def __init__(self, config: DistillConfig, task: Task) -> None:
        start = perf_counter()
        opened = open_training(config, task)
        principal, mine = principal_of(task.cache), ranks.current()
        self._learner = Learner(opened.config, opened.student, opened.teacher, principal=principal)
        self._learner.start(opened.sampler)
        self._sampler = near(opened.sampler.share(mine.rank, mine.count), self._learner.device)
        self._learner.advance(self._sampler)
        self._start_s = perf_counter() - start
        self._seconds: list[list[float]] = [[] for _ in range(_PLACES)]

    def advance(self, place: int, *, kept: bool) -> None:
        """Two steps there: the first, which may have to make ready for it, is not timed."""
        at = int((place + 0.5) / _PLACES * self._learner.config.steps)
        self._learner.step = at
        self._learner.advance(self._sampler)
        self._learner.step = at  # again: the next one may be past the end of a short training
        start = perf_counter()
        self._learner.advance(self._sampler)
        if kept:
            self._seconds[place].append(perf_counter() - start)

    def pace(self) -> Pace:
        """Median of the rounds at each place, mean over the places."""
        step_s = statistics.fmean(statistics.median(found) for found in self._seconds)
        compiled = pays(self._learner.config, self._learner.device)
        return Pace(max(0.0, self._start_s - step_s), step_s, compiled)


def _failure(name: str, error: MipkdError) -> Pace:
    if ranks.current().count > 1:
        raise error  # what the other processes are at is not known
    log.error("%s: %s", name, error.what)
    return Pace(0.0, 0.0, why_not=error.what)
