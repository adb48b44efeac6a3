"""Run what was built: raw latency samples, and the quality of the pixels it produced."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from pathlib import Path

from mipkd.core import plugins
from mipkd.core.records import Built, Host, Measurement, TestSet
from mipkd.distill.data import load_tests
from pipeline.bench.board import Watch, facts
from pipeline.bench.host import Neighbours
from pipeline.bench.latency import BenchSettings, compare
from pipeline.bench.pixels import score
from pipeline.bench.power import power_source
from pipeline.run import stage
from targets.base import Target

log = logging.getLogger(__name__)

_BUSY = 0.05  # of the CPU time taken by others: more is told beside the figures


@stage(version=3)
def measure(
    config: BenchSettings,
    target: str,
    builts: tuple[Built, ...],
    tests: TestSet,
    versions: dict[str, str],
    host: Host,
    out: Path,
) -> tuple[Measurement, ...]:
    """All of one target's models: latencies interleaved, then the students' pixels."""
    chosen: Target = plugins.load("targets", target, "TARGET")
    pairs = load_tests(tests)
    with ExitStack() as stack:
        opened = {
            f"{b.role} {b.precision}": stack.enter_context(closing(chosen.open(b))) for b in builts
        }
        multiples = {name: b.multiple for name, b in zip(opened, builts, strict=True)}
        power, board, neighbours = power_source(), facts(), Neighbours()
        with Watch() as watch:
            by_size = [
                compare(opened, size, config, multiples=multiples, power=power)
                for size in config.sizes
            ]
        busy = _busy(neighbours.share())
        found = []
        for (name, session), built in zip(opened.items(), builts, strict=True):
            outputs = (
                out / name.replace(" ", "-")
                if built.role == "student" and chosen.makes_pixels
                else None
            )
            found.append(
                Measurement(
                    role=built.role,
                    target=target,
                    precision=built.precision,
                    size_bytes=built.size_bytes,
                    latencies=tuple(latencies[name] for latencies in by_size),
                    scores=score(
                        session,
                        tests=pairs,
                        scale=built.scale,
                        multiple=built.multiple,
                        out=outputs,
                    )
                    if outputs
                    else (),
                    outputs=outputs,
                    versions=versions,
                    notes=(*built.notes, *busy),
                    invalid_because=watch.throttled,
                    conditions={**board, **watch.conditions},
                    file=built.file,
                )
            )
    return tuple(found)


def _busy(share: float) -> tuple[str, ...]:
    if share <= _BUSY:
        return ()
    note = f"other programs took {share:.0%} of the CPU during the measurement"
    log.warning("%s: latencies are longer than on an idle machine", note)
    return (note,)
