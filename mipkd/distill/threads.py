"""How many threads make a step fastest now, found on the steps of the training itself.

Beside other programs threads wait for the slowest of them at every operation: with two threads on
two busy cores a step may take three times as long as with one. Which number is best changes with
what else runs, so it is looked at again from time to time. Results differ in their last bits
between numbers of threads: `distill.threads` fixes one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch

from mipkd.distill import ranks
from mipkd.distill.settings import DistillConfig

log = logging.getLogger(__name__)

Step = Callable[[], dict[str, float]]  # one of the optimiser; its loss terms
RunStep = Callable[[Step], dict[str, float]]

_LOOK_EVERY_S = 60.0
_MOST_OF_TIME = 0.05  # that looking at other numbers may take
_BLOCK_S = 0.25  # a block of steps with one number lasts as long, and is one step at least
_CLEAR = 1.5  # times as slow: no second block is needed to see it
_BLOCKS = 2  # of each number otherwise, in turns; the best of them counts
_WORTH = 1.05  # times as fast: less is noise, and nothing is changed for it


@contextmanager
def tuned_threads(config: DistillConfig, device: torch.device) -> Iterator[RunStep]:
    """What runs each step of a training: on a CPU with `distill.threads`, or the fastest number.

    Afterwards there are as many threads as before. Where several processes train, each keeps its
    own number.
    """
    before = torch.get_num_threads()
    with fixed_threads(config.threads or before):
        if config.threads or device.type != "cpu" or ranks.current().count > 1:
            yield _run_plainly
        else:
            yield ThreadTuner(before).run


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Inside, torch has as many threads to begin with; afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_plainly(step: Step) -> dict[str, float]:
    return step()


class ThreadTuner:
    """Runs steps with the number of threads that is fastest now.

    It begins with `most`; others are halves of it, down to 1. A neighbour that is faster is taken,
    and its own next one tried.
    """

    def __init__(
        self,
        most: int,
        *,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.threads = most
        self._numbers = sorted({max(1, most >> shift) for shift in range(most.bit_length())})
        self._set, self._clock = set_threads, clock
        self._trial: _Trial | None = None
        self._next_look = -float("inf")
        self._set(most)

    def run(self, step: Step) -> dict[str, float]:
        """A step, timed."""
        if self._trial is None and self._clock() >= self._next_look:
            self._look()
        trial = self._trial
        if trial is None:
            return step()
        self._set(trial.now)
        start = self._clock()
        result = step()
        trial.note(self._clock() - start)
        if trial.is_over:
            self._conclude(trial)
        return result

    def _look(self) -> None:
        """Try the neighbours of the number that is used."""
        at = self._numbers.index(self.threads)
        near = [n for n in (at - 1, at + 1) if 0 <= n < len(self._numbers)]
        if near:
            self._trial = _Trial(self.threads, [self._numbers[n] for n in near])
        else:
            self._next_look = float("inf")  # there is one number alone

    def _conclude(self, trial: _Trial) -> None:
        best, step_s = trial.best
        changed = best != self.threads
        if changed or self._next_look < 0:
            told = ", ".join(f"{n}: {s * 1e3:.0f} ms" for n, s in sorted(step_s.items()))
            log.info("threads: %d, the fastest now (a step with %s)", best, told)
        self.threads, self._trial = best, None
        self._set(best)
        pause_s = max(_LOOK_EVERY_S, trial.seconds / _MOST_OF_TIME)
        self._next_look = self._clock() if changed else self._clock() + pause_s


class _Trial:
    """Blocks of steps with the number in use and others, in turns."""

    def __init__(self, used: int, others: list[int]) -> None:
        self._used = used
        self._queue = [used, *others]
        self._again = [used, *others] * (_BLOCKS - 1)
        self._block: list[float] = []
        self._best_s: dict[int, float] = {}
        self.seconds = 0.0

    @property
    def now(self) -> int:
        """The number whose block runs."""
        return self._queue[0]

    @property
    def is_over(self) -> bool:
        return not self._queue

    @property
    def best(self) -> tuple[int, dict[int, float]]:
        """The number to use, and seconds a step of each."""
        fastest = min(self._best_s, key=lambda n: self._best_s[n])
        worth = self._best_s[self._used] >= _WORTH * self._best_s[fastest]
        return fastest if worth else self._used, self._best_s

    def note(self, step_s: float) -> None:
        """A step took so long; the first of a longer block prepares for its number of threads."""
        self.seconds += step_s
        self._block.append(step_s)
        if sum(self._block) < _BLOCK_S:
            return
        counted = self._block[1:] or self._block
        number, mean_s = self._queue.pop(0), sum(counted) / len(counted)
        self._best_s[number] = min(mean_s, self._best_s.get(number, mean_s))
        self._block = []
        if not self._queue:
            self._queue, self._again = [n for n in self._again if self._is_near(n)], []
            if self._queue == [self._used]:
                self._queue = []

    def _is_near(self, number: int) -> bool:
        """Whether one more block could make it the fastest."""
        return self._best_s[number] < _CLEAR * min(self._best_s.values())
