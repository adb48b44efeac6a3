"""The number of threads follows what is fastest, and looking costs little."""

import pytest
import torch

from mipkd.distill.settings import DistillConfig
from mipkd.distill.threads import ThreadTuner, tuned_threads


class Machine:
    """A clock that steps move on by what they cost with the number of threads that was set."""

    def __init__(self, cost_s: dict[int, float]) -> None:
        self.cost_s, self.now_s, self.threads = cost_s, 0.0, 0

    def tuner(self) -> ThreadTuner:
        return ThreadTuner(max(self.cost_s), set_threads=self.set, clock=lambda: self.now_s)

    def set(self, threads: int) -> None:
        self.threads = threads

    def step(self) -> dict[str, float]:
        self.now_s += self.cost_s[self.threads]
        return {}

    def run(self, tuner: ThreadTuner, steps: int) -> float:
        start = self.now_s
        for _ in range(steps):
            tuner.run(self.step)
        return self.now_s - start


IDLE, BUSY = {1: 1.7, 2: 1.0}, {1: 1.7, 2: 5.0}


@pytest.mark.parametrize("cost_s", [IDLE, BUSY])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_short_training_costs_little_more_than_the_best_fixed_number(
    cost_s: dict[int, float], scale: float
) -> None:
    machine = Machine({n: s * scale for n, s in cost_s.items()})
    steps = 20 if scale == 1 else 600
    taken = machine.run(machine.tuner(), steps)
    assert taken <= 1.2 * steps * min(machine.cost_s.values())


def test_a_machine_that_becomes_busy_and_idle_again_is_followed() -> None:
    machine = Machine(dict(IDLE))
    tuner = machine.tuner()
    machine.run(tuner, 100)
    assert tuner.threads == 2
    machine.cost_s = BUSY
    machine.run(tuner, 100)
    assert tuner.threads == 1
    machine.cost_s = IDLE
    taken = machine.run(tuner, 400)
    assert tuner.threads == 2
    assert taken <= 1.2 * 400


def test_among_many_cores_the_best_is_walked_to() -> None:
    machine = Machine({1: 0.8, 2: 0.5, 4: 0.3, 8: 0.6, 16: 2.0})
    tuner = machine.tuner()
    assert machine.run(tuner, 300) <= 1.2 * 300 * 0.3
    assert tuner.threads == 4


def test_noise_changes_nothing_and_one_core_is_left_alone() -> None:
    machine = Machine({1: 1.0, 2: 1.02})
    tuner = machine.tuner()
    machine.run(tuner, 500)
    assert tuner.threads == 2
    alone = Machine({1: 1.0})
    assert alone.run(alone.tuner(), 10) == 10.0
    assert alone.threads == 1


def test_a_number_that_was_set_is_kept_and_given_back() -> None:
    before, seen = torch.get_num_threads(), []

    def step() -> dict[str, float]:
        seen.append(torch.get_num_threads())
        return {}

    with tuned_threads(DistillConfig(threads=3), torch.device("cpu")) as run:
        for _ in range(20):
            run(step)
    assert seen == [3] * 20
    assert torch.get_num_threads() == before
