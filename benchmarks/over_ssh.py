"""Latencies measured over SSH on this same machine beside those measured in a run's own process.

`python -m benchmarks.over_ssh MODEL --device ssh://localhost [--python P] [--ssh-config F]`

In each round every target is measured here and over SSH in random order; a ratio is the median of
the rounds' ratios of medians. Both run the same code on the same machine, so a ratio away from 1 is
what the way there costs. The machine must be idle.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.own_tools import graph_of
from mipkd.core.records import Built
from pipeline.bench.host import describe_host
from pipeline.bench.latency import BenchSettings
from pipeline.machine.base import DeviceConfig, Job, Machine, connect
from pipeline.machine.local import Local
from targets.base import BuildRequest, find

BOUND = 0.10


def main() -> None:
    """Print medians and ratios; exit with 1 when one is off by more than the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint that we know, or an ONNX file")
    parser.add_argument("--device", required=True, help="this machine: ssh://localhost")
    parser.add_argument("--python", default=sys.executable, help="of the device")
    parser.add_argument("--ssh-config", type=Path)
    parser.add_argument("--target", default="cpu,openvino")
    parser.add_argument("--size", default="128x128", help="LR width x height")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    settings = BenchSettings(
        sizes=((height, width),),
        min_time_s=asked.seconds,
        max_time_s=10 * asked.seconds,
        attempts=1,
    )
    config = DeviceConfig(address=asked.device, python=asked.python, ssh_config=asked.ssh_config)
    with tempfile.TemporaryDirectory() as name, connect(config) as device:
        folder = Path(name)
        graph = graph_of(asked.model, folder)
        builts = [
            find(target).build(BuildRequest(graph, "fp32", folder / target))
            for target in asked.target.split(",")
        ]
        rounds = _rounds(builts, settings, (Local(), device), asked.rounds)
    ratios = {
        target: statistics.median(there / here for here, there in pairs)
        for target, pairs in rounds.items()
    }
    if asked.json:
        facts = {"host": describe_host().cpu, "size": asked.size, "rounds_ms": rounds}
        print(json.dumps(facts | {"ratios": ratios}, indent=1))
    else:
        for target, pairs in rounds.items():
            here, there = (statistics.median(values) for values in zip(*pairs, strict=True))
            spread = [there / here for here, there in pairs]
            print(
                f"{target:<10} here {here:8.2f} ms, over SSH {there:8.2f} ms, ratio "
                f"{ratios[target]:.3f}  (rounds {min(spread):.3f} to {max(spread):.3f})"
            )
    sys.exit(any(abs(ratio - 1) > BOUND for ratio in ratios.values()))


def _rounds(
    builts: list[Built], settings: BenchSettings, machines: tuple[Machine, Machine], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """By target, medians in ms: here, over SSH."""
    found: dict[str, list[tuple[float, float]]] = {built.target: [] for built in builts}
    order = random.Random(0)
    for _ in range(rounds):
        for built in order.sample(builts, len(builts)):
            ms = [0.0, 0.0]
            for number in order.sample((0, 1), 2):
                ms[number] = 1e3 * _p50_s(built, settings, machines[number])
            found[built.target].append((ms[0], ms[1]))
    return found


def _p50_s(built: Built, settings: BenchSettings, machine: Machine) -> float:
    info = machine.offers([built.target])[built.target]
    (found,) = machine.run(Job(info, (built,), settings))
    return statistics.median(found.latencies[0].samples_s)


if __name__ == "__main__":
    main()
