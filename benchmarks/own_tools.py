"""Our latencies beside those of the runtimes' own tools, in one interleaved run.

`python -m benchmarks.own_tools MODEL [MODEL ...] [--size 128x128] [--rounds 9]`

MODEL is a checkpoint, an ONNX file, or FAMILY:SIZE for a net of random weights. OpenVINO at every
precision it offers here against `benchmark_app`, and ONNX Runtime in FP32 against a bare loop over
`InferenceSession.run` with default settings. In each round the pairs, and the two of a pair, run
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from mipkd.core import plugins
from mipkd.core.records import Built, Graph, PatchSet
from pipeline.bench.host import describe_host
from pipeline.bench.latency import FEWEST, BenchSettings, compare
from targets.base import BuildRequest, find

BOUNDS = {"openvino": 0.03, "cpu": 0.05}  # how far from 1 a ratio may be
_SCALE = 4  # of a net of random weights

Size = tuple[int, int]  # LR height, width
Pair = tuple[Callable[[], float], Callable[[], float]]  # median in seconds: ours, theirs
Rounds = dict[str, list[tuple[float, float]]]  # of each pair, one a round


def main() -> None:
    """Print medians and ratios; exit with 1 when one is off by more than its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--size", default="128x128", help="LR width x height")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        pairs: dict[str, Pair] = {}
        for model in asked.models:
            pairs |= _pairs(model, (height, width), asked.seconds, Path(folder))
        found = _rounds(pairs, asked.rounds)
    ratios = {name: statistics.median(a / b for a, b in turns) for name, turns in found.items()}
    if asked.json:
        facts = {"host": describe_host().cpu, "size": asked.size, "rounds_s": found}
        print(json.dumps(facts | {"ratios": ratios}, indent=1))
    else:
        print("\n".join(_lines(found, ratios)))
    sys.exit(any(abs(ratio - 1) > _bound(name) for name, ratio in ratios.items()))


def _lines(found: Rounds, ratios: Mapping[str, float]) -> Iterator[str]:
    yield f"{'median ms':<40} {'ours':>8} {'theirs':>8}  ratio  (rounds)"
    for name, turns in found.items():
        ours, theirs = (statistics.median(column) * 1e3 for column in zip(*turns, strict=True))
        each = [a / b for a, b in turns]
        spread = f"({min(each):.3f} to {max(each):.3f})"
        yield f"{name:<40} {ours:8.2f} {theirs:8.2f}  {ratios[name]:.3f}  {spread}"


def _bound(pair: str) -> float:
    return next(bound for target, bound in BOUNDS.items() if f" {target} " in pair)


def _rounds(pairs: Mapping[str, Pair], rounds: int) -> Rounds:
    """Each pair's medians in seconds, one a round."""
    found: Rounds = {name: [] for name in pairs}
    order = random.Random(0)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for name in order.sample(list(pairs), len(pairs)):
            ours, theirs = pairs[name]
            if order.random() < 0.5:
                found[name].append((ours(), theirs()))
            else:
                late = theirs()
                found[name].append((ours(), late))
    return found


def _pairs(model: str, size: Size, seconds: float, folder: Path) -> Iterator[tuple[str, Pair]]:
    """Ours and theirs for each precision of a model."""
    place = folder / re.sub(r"\W", "_", model)
    graph, patches = graph_of(model, place), _noise(place)
    offered = [("openvino", p, _benchmark_app) for p in find("openvino").precisions()]
    for target, precision, theirs in (*offered, ("cpu", "fp32", _bare_loop)):
        out = place / f"{target}-{precision}"
        built = find(target).build(BuildRequest(graph, precision, out, patches))

        def ask(tool: Callable[..., float], built: Built = built) -> Callable[[], float]:
            return lambda: tool(built, size, seconds)

        yield f"{Path(model).stem} {target} {precision}", (ask(_ours), ask(theirs))


def _ours(built: Built, size: Size, seconds: float) -> float:
    """The bench's median in seconds, on a session of its own."""
    session = find(built.target).open(built)
    times = {"min_time_s": seconds, "max_time_s": 10 * seconds}
    settings = BenchSettings(sizes=(size,), min_samples=FEWEST, attempts=1, **times)
    try:
        latency = compare({"ours": session}, size, settings)["ours"]
    finally:
        session.close()
    return statistics.median(latency.samples_s)


def _benchmark_app(built: Built, size: Size, seconds: float) -> float:
    """The median that OpenVINO's own tool reports, in seconds."""
    tool = Path(sys.executable).with_name("benchmark_app")
    shape = f"[1,3,{size[0]},{size[1]}]"
    command = [str(tool), "-m", str(built.file), "-d", "CPU", "-api", "sync", "-hint", "latency"]
    command += ["-infer_precision", built.options["INFERENCE_PRECISION_HINT"]]
    command += ["-shape", shape, "-t", str(max(1, round(seconds)))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) ms", said)
    assert found, said
    return float(found[1]) / 1e3


def _bare_loop(built: Built, size: Size, seconds: float) -> float:
    """What anybody would write first: a session with default settings and a clock round it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(built.file), providers=["CPUExecutionProvider"])
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


def graph_of(model: Path | str, folder: Path) -> Graph:
    """An FP32 graph of a checkpoint or a family and size, or the ONNX file as it is."""
    folder.mkdir(exist_ok=True)
    file = Path(model)
    if file.suffix == ".onnx":
        return Graph(file, "", "student", scale=1, multiple=1, opset=0, family="onnx")
    from mipkd.distill.teacher import TeacherOptions, identify
    from mipkd.export.onnx import export

    net: Any
    if file.is_file():
        facts, net = identify(file, role="teacher", options=TeacherOptions())
        family = facts.arch
    else:
        family, _, spec = model.partition(":")
        arch = plugins.load("mipkd.archs", family, "ARCH")
        net = arch.make(arch.shrink(arch.paper(_SCALE), spec)).eval()
    return export(net, out=folder, metadata={}, role="teacher", family=family)


def _noise(folder: Path) -> PatchSet:
    """Patches to calibrate INT8 with: its speed does not depend on them."""
    values = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    np.save(folder / "patches.npy", values)
    return PatchSet(folder / "patches.npy", "", "noise", count=4, size=(64, 64))


if __name__ == "__main__":
    main()
