"""A job: models of one target to time and to give pixels, on whatever machine this is.

The same code measures in a run's own process and on a device that has numpy and the runtime only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from time import perf_counter

from mipkd.core.measurement import Latency
from mipkd.core.records import Built
from pipeline.bench.board import Watch, facts
from pipeline.bench.host import Neighbours
from pipeline.bench.latency import BenchSettings, Held, compare, rise
from pipeline.bench.power import power_source
from targets.base import ByteArray, Session, Target, upscale

log = logging.getLogger(__name__)

Image = tuple[str, ByteArray]  # name, LR pixels
Sink = Callable[[Built, str, ByteArray], None]  # takes a model's output for an image

_BUSY = 0.05  # of the CPU time taken by others: more is told beside the figures


@dataclass(frozen=True)
class Done:
    """What came of a job, beside the pixels."""

    latencies: tuple[tuple[Latency, ...], ...]  # of each model, by size
    notes: tuple[str, ...] = ()  # what a reader should know of all of them
    invalid_because: str = ""
    conditions: dict[str, str] = field(default_factory=dict)  # of the board, while measured


def carry_out(
    target: Target,
    builts: Sequence[Built],
    images: Iterable[Image],
    settings: BenchSettings,
    sink: Sink,
) -> Done:
    """The latencies of each model, interleaved; each output that is `shown`."""
    done = time_models(target, builts, settings)
    make_pixels(target, builts, images, sink)
    return done


def time_models(target: Target, builts: Sequence[Built], settings: BenchSettings) -> Done:
    """The latencies of each model, interleaved, and what the board did meanwhile.

    Nothing is timed on a target that only simulates here: its models have no latencies.
    """
    if target.simulated:
        return Done(((),) * len(builts))
    multiples = {name_of(b): b.multiple for b in builts}
    power, board, neighbours = power_source(), facts(), Neighbours()
    by_size = []
    held: dict[str, Held] = {}
    with opened(target, builts, held) as sessions, Watch() as watch:
        for size in settings.sizes:
            log.debug("latency at LR %dx%d", size[1], size[0])
            by_size.append(
                compare(sessions, size, settings, multiples=multiples, power=power, held=held)
            )
    share = neighbours.share()
    return Done(
        latencies=tuple(tuple(found[name_of(b)] for found in by_size) for b in builts),
        notes=_busy(share),
        invalid_because=watch.throttled or _too_busy(share, settings),
        conditions={**board, **watch.conditions},
    )


def make_pixels(
    target: Target, builts: Sequence[Built], images: Iterable[Image], sink: Sink
) -> None:
    """Give every output that is `shown`, for every image, to `sink`."""
    makers = [built for built in builts if shown(built)]
    if not target.makes_pixels:
        return
    with opened(target, makers) as sessions:
        for name, lr_HWC in images:
            for built in makers:
                session = sessions[name_of(built)]
                sr_HWC = upscale(session, lr_HWC, scale=built.scale, multiple=built.multiple)
                sink(built, name, sr_HWC)


def shown(built: Built) -> bool:
    """Whether its pixels are looked at: of a teacher only the speed is."""
    return built.role != "teacher"


@contextmanager
def opened(
    target: Target, builts: Sequence[Built], held: dict[str, Held] | None = None
) -> Iterator[dict[str, Session]]:
    """A session of each model, by `name_of`; what it took to open goes into `held`."""
    sessions: dict[str, Session] = {}
    with ExitStack() as stack:
        for built in builts:
            start = perf_counter()
            with rise() as bytes_more:
                session = target.open(built)
            if held is not None:
                memory_bytes = bytes_more[0] if bytes_more else None
                held[name_of(built)] = Held(perf_counter() - start, memory_bytes)
            sessions[name_of(built)] = stack.enter_context(closing(session))
        yield sessions


def name_of(built: Built) -> str:
    """How a model is called among those of its target."""
    return f"{built.role} {built.precision}"


def _too_busy(share: float, settings: BenchSettings) -> str:
    if share <= settings.max_busy:
        return ""
    return (
        f"busy machine: other programs took {share:.0%} of the CPU "
        f"(bound {settings.max_busy:.0%}, bench.max_busy)"
    )


def _busy(share: float) -> tuple[str, ...]:
    if share <= _BUSY:
        return ()
    note = f"other programs took {share:.0%} of the CPU during the measurement"
    log.warning("%s: latencies are longer than on an idle machine", note)
    return (note,)
