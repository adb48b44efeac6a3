"""What the bench itself costs: latency and wall time per call of a target that does nothing.

`python -m benchmarks.bench_overhead`
"""

from __future__ import annotations

import argparse
import json
import time

from pipeline.bench.host import describe_host
from pipeline.bench.latency import BenchSettings, compare
from pipeline.bench.stats import percentiles
from targets.base import FloatArray
from targets.null import NullSession

BOUND_S = 20e-6


class Counting(NullSession):
    """The null target's session, with a count of its calls."""

    calls = 0

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        """Zeros of the upscaled shape."""
        self.calls += 1
        return super().run(lr_NCHW)


def main() -> None:
    """Print one line a size, exit with 1 above the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    asked = parser.parse_args()
    settings = BenchSettings()
    rows = [_row(size, settings) for size in settings.sizes]
    if asked.json:
        print(json.dumps({"host": describe_host().cpu, "sizes": rows}, indent=1))
    else:
        for row in rows:
            print(
                f"LR {row['size']}: timed p50 {row['p50_us']:.2f} us, p99 {row['p99_us']:.2f} us; "
                f"wall {row['wall_us']:.2f} us a call over {row['calls']} calls"
            )
    raise SystemExit(any(float(row["wall_us"]) > BOUND_S * 1e6 for row in rows))


def _row(size: tuple[int, int], settings: BenchSettings) -> dict[str, float | str]:
    """Two sessions, so that turns change hands as they do in use."""
    sessions = {"one": Counting(2), "other": Counting(2)}
    start = time.perf_counter()
    latency = compare(sessions, size, settings)["one"]
    wall_s = time.perf_counter() - start
    calls = sum(session.calls for session in sessions.values())
    found = percentiles(latency.samples_s)
    return {
        "size": f"{size[1]}x{size[0]}",
        "p50_us": found.p50_s.value * 1e6,
        "p99_us": found.p99_s.value * 1e6,
        "wall_us": wall_s / calls * 1e6,
        "calls": calls,
    }


if __name__ == "__main__":
    main()
