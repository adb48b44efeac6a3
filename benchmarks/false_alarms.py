"""How often `check` finds a model slower than itself, and how often it finds one that is.

`python -m benchmarks.false_alarms BUNDLE [--target cpu] [--precision fp32] [--count 200]`

Each comparison opens the model twice, lets both take turns as `check --baseline BUNDLE` does, and
asks its gate; then once more with one of them made slower by 10 % of its median, spent in a loop.
INVALID counts as neither.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from mipkd.core.evidence import Outcome
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built
from pipeline.bench.latency import BenchSettings, compare
from pipeline.bundle import manifest
from pipeline.judge.regression import BaselineConfig, Beside, regress
from targets.base import FloatArray, Session, Target, find

SLOWER = 0.1
BOUNDS = {"false alarms": 0.01, "missed": 0.01, "invalid": 0.1}


class Slowed(Session):
    """A session that takes a part of a second longer."""

    def __init__(self, session: Session, extra_s: float) -> None:
        self._session, self._extra_s = session, extra_s

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """The other's output, later."""
        found = self._session.run(lr_NCHW)
        end = perf_counter() + self._extra_s
        while perf_counter() < end:
            pass
        return found

    def close(self) -> None:
        """Close the other."""
        self._session.close()


def main() -> None:
    """Print counts and shares; exit with 1 when one is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--size", default="64x64", help="LR width x height")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each model in a comparison")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    times = {"min_time_s": asked.seconds, "max_time_s": 10 * asked.seconds}
    pace = BenchSettings(sizes=((height, width),), warmup_s=0.1, **times)
    models = manifest.read(asked.bundle).models
    built = next(
        m.built(asked.bundle)
        for m in models
        if (m.target, m.precision) == (asked.target, asked.precision)
    )
    same, slow = Counter[Outcome](), Counter[Outcome]()
    for number in range(asked.count):
        settings = replace(pace, seed=number)
        same[_gate(find(asked.target), built, settings, 0.0)] += 1
        slow[_gate(find(asked.target), built, settings, SLOWER)] += 1
        print(f"{number + 1} of {asked.count}: {_said(same)}; {_said(slow)}", file=sys.stderr)
    shares = {
        "false alarms": same[Outcome.FAIL] / asked.count,
        "missed": slow[Outcome.PASS] / max(1, asked.count - slow[Outcome.INVALID]),
        "invalid": (same[Outcome.INVALID] + slow[Outcome.INVALID]) / (2 * asked.count),
    }
    if asked.json:
        print(json.dumps({"same": same, "slower": slow, "shares": shares}, indent=1))
    else:
        print(f"against itself:       {_said(same)}")
        print(f"{SLOWER:.0%} slower:           {_said(slow)}")
        print("\n".join(f"{n}: {s:.1%}, bound {BOUNDS[n]:.0%}" for n, s in shares.items()))
    sys.exit(any(share > BOUNDS[name] for name, share in shares.items()))


def _said(counts: Counter[Outcome]) -> str:
    return ", ".join(f"{outcome.value} {counts[outcome]}" for outcome in Outcome)


def _gate(target: Target, built: Built, settings: BenchSettings, slower: float) -> Outcome:
    with closing(target.open(built)) as one, closing(target.open(built)) as other:
        if slower:
            size = settings.sizes[0]
            usual = compare({"one": one}, size, replace(settings, min_time_s=0.2))["one"]
            other = Slowed(other, slower * statistics.median(usual.samples_s))
        found = compare({"one": one, "other": other}, settings.sizes[0], settings)
    m = Measurement("student", built.target, built.precision, 0, (found["one"],), (), None, {})
    beside = Beside({(built.target, built.precision): [(found["one"], found["other"])]})
    (gate,) = regress(BaselineConfig(), [m], [m], beside)
    return gate.outcome


if __name__ == "__main__":
    main()
