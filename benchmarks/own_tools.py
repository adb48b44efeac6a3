"""Our latencies beside those of the runtimes' own tools, in one interleaved run.

`python -m benchmarks.own_tools CHECKPOINT_OR_ONNX [--size 128x128] [--rounds 9]`

OpenVINO against `benchmark_app` and ONNX Runtime against a bare loop over `InferenceSession.run`
with default settings, all in FP32 on this CPU. In each round the pairs, and the two of a pair, run
once one after the other in random order; a ratio is the median of the rounds' ratios of medians.
The machine must be idle: with other work on it the rounds differ by more than the bound.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

from mipkd.core import plugins
from mipkd.core.records import Built, Graph
from pipeline.bench.host import describe_host
from pipeline.bench.latency import BenchSettings, compare
from targets.base import Target

BOUND = 0.05
_PAIRS = (("openvino: ours", "openvino: benchmark_app"), ("cpu: ours", "cpu: bare loop"))


def main() -> None:
    """Print medians and ratios; exit with 1 when one is off by more than the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint that we know, or an ONNX file")
    parser.add_argument("--size", default="128x128", help="LR width x height")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        graph = graph_of(asked.model, Path(folder))
        contestants = _contestants(graph, (height, width), asked.seconds, Path(folder))
        medians = _rounds(contestants, asked.rounds)
    found = {name: statistics.median(values) for name, values in medians.items()}
    ratios = {
        ours: statistics.median(a / b for a, b in zip(medians[ours], medians[theirs], strict=True))
        for ours, theirs in _PAIRS
    }
    if asked.json:
        facts = {"host": describe_host().cpu, "size": asked.size, "rounds_ms": medians}
        print(json.dumps(facts | {"ratios": ratios}, indent=1))
    else:
        for name, values in medians.items():
            spread = f"{min(values):.2f} to {max(values):.2f}"
            print(f"{name:<24} {found[name]:8.2f} ms  (rounds {spread})")
        for ours, theirs in _PAIRS:
            print(f"{ours} / {theirs}: {ratios[ours]:.3f}")
    sys.exit(any(abs(ratio - 1) > BOUND for ratio in ratios.values()))


def _rounds(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contestant's medians in ms, one a round."""
    medians: dict[str, list[float]] = {name: [] for name in contestants}
    order = random.Random(0)
    for _ in range(rounds):
        for pair in order.sample(_PAIRS, len(_PAIRS)):
            for name in order.sample(pair, len(pair)):
                medians[name].append(contestants[name]() * 1e3)
    return medians


def _contestants(
    graph: Graph, size: tuple[int, int], seconds: float, folder: Path
) -> dict[str, Callable[[], float]]:
    builts: dict[str, Built] = {}
    for name in ("openvino", "cpu"):
        target: Target = plugins.load("targets", name, "TARGET")
        builts[name] = target.build(graph, "fp32", None, folder / name)
    return {
        "openvino: ours": lambda: _ours(builts["openvino"], size, seconds),
        "openvino: benchmark_app": lambda: _benchmark_app(builts["openvino"].file, size, seconds),
        "cpu: ours": lambda: _ours(builts["cpu"], size, seconds),
        "cpu: bare loop": lambda: _bare_loop(builts["cpu"].file, size, seconds),
    }


def _ours(built: Built, size: tuple[int, int], seconds: float) -> float:
    """The bench's median in seconds, on a session of its own."""
    target: Target = plugins.load("targets", built.target, "TARGET")
    session = target.open(built)
    settings = BenchSettings(sizes=(size,), min_time_s=seconds, max_time_s=10 * seconds, attempts=1)
    try:
        latency = compare({"ours": session}, size, settings)["ours"]
    finally:
        session.close()
    return statistics.median(latency.samples_s)


def _benchmark_app(model: Path, size: tuple[int, int], seconds: float) -> float:
    """The median that OpenVINO's own tool reports, in seconds."""
    tool = Path(sys.executable).with_name("benchmark_app")
    shape = f"[1,3,{size[0]},{size[1]}]"
    command = [str(tool), "-m", str(model), "-d", "CPU", "-api", "sync", "-hint", "latency"]
    command += ["-infer_precision", "f32", "-shape", shape, "-t", str(max(1, round(seconds)))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) ms", said)
    assert found, said
    return float(found[1]) / 1e3


def _bare_loop(model: Path, size: tuple[int, int], seconds: float) -> float:
    """What anybody would write first: a session with default settings and a clock round it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    given = {session.get_inputs()[0].name: image}
    for _ in range(3):
        session.run(None, given)
    samples: list[float] = []
    while sum(samples) < seconds:
        start = perf_counter()
        session.run(None, given)
        samples.append(perf_counter() - start)
    return statistics.median(samples)


def graph_of(model: Path, folder: Path) -> Graph:
    """An FP32 graph of a checkpoint, or the ONNX file as it is."""
    if model.suffix == ".onnx":
        return Graph(model, "", "student", scale=1, multiple=1, opset=0, family="onnx")
    from mipkd.distill.teacher import TeacherOptions, identify
    from mipkd.export.onnx import export

    facts, net = identify(model, role="teacher", options=TeacherOptions())
    return export(net, out=folder, metadata={}, role="teacher", family=facts.arch)


if __name__ == "__main__":
    main()
