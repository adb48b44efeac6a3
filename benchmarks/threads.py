"""What a short training takes with the threads that are found, and with fixed numbers of them.

`python -m benchmarks.threads [--steps 40] [--rounds 3] [--busy 0,2]`

Each arm is a process of its own that times steps of an x2 edsr:c32b2 on 16 patches of 48x48, in
turns, idle and beside so many processes that do nothing but count. "before" spins while it waits.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_STEPS = """
import sys, time, torch
from torch.nn.functional import l1_loss
from mipkd.archs import edsr
from mipkd.distill.settings import DistillConfig
from mipkd.distill.threads import tuned_threads
steps, threads = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
net = edsr.EDSR(edsr.Hyper(scale=2, channels=32, blocks=2))
optimiser = torch.optim.Adam(net.parameters(), 1e-3)
lr, hr = torch.rand(16, 3, 48, 48), torch.rand(16, 3, 96, 96)
def step():
    optimiser.zero_grad()
    l1_loss(net(lr), hr).backward()
    optimiser.step()
    return {}
step()
start = time.perf_counter()
with tuned_threads(DistillConfig(threads=threads or None), torch.device("cpu")) as run:
    for _ in range(steps):
        run(step)
print(time.perf_counter() - start)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", default="0,2", help="numbers of processes beside it")
    given = parser.parse_args(argv)
    for beside in map(int, given.busy.split(",")):
        with busy(beside):
            _compare(beside, given.steps, given.rounds)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Beside so many processes that count."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _compare(beside: int, steps: int, rounds: int) -> None:
    cores = os.cpu_count() or 1
    fixed = {f"{n} fixed": (n, {}) for n in sorted({1, cores})}
    before = {f"{cores} before": (cores, {"OMP_WAIT_POLICY": "ACTIVE"})}
    arms: dict[str, tuple[int, dict[str, str]]] = {"found": (0, {}), **fixed, **before}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, (threads, environment) in arms.items():
            taken[name].append(_time(steps, threads, environment))
    medians = {name: statistics.median(found) for name, found in taken.items()}
    best = min(medians[name] for name in fixed)
    print(f"beside {beside} busy processes, {steps} steps, {cores} cores:")
    for name, median_s in medians.items():
        print(f"  {name:<10} {median_s:7.2f} s  {median_s / best:5.2f} x the best fixed number")


def _time(steps: int, threads: int, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", _STEPS, str(steps), str(threads)]
    plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ended = subprocess.run(
        command, env={**plain, **environment}, capture_output=True, text=True, check=True
    )
    return float(ended.stdout)


if __name__ == "__main__":
    main()
