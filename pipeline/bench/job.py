"""A job: models of one target to time and to give pixels, on whatever machine this is.

The same code measures in a run's own process and on a device that has numpy and the runtime only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from time import perf_counter

from mipkd.core.measurement import Measurement
from mipkd.core.records import Built
from pipeline.bench.board import Watch, facts
from pipeline.bench.host import Neighbours, describe_host
from pipeline.bench.latency import BenchSettings, Held, compare, rise
from pipeline.bench.power import power_source
from targets.base import ByteArray, Session, Target, upscale

log = logging.getLogger(__name__)

Image = tuple[str, ByteArray]  # name, LR pixels
Sink = Callable[[Built, str, ByteArray], None]  # takes a model's output for an image

_BUSY = 0.05  # of the CPU time taken by others: more is told beside the figures


def carry_out(
    target: Target,
    builts: Sequence[Built],
    images: Iterable[Image],
    settings: BenchSettings,
    sink: Sink,
) -> tuple[Measurement, ...]:
    """The latencies of each model, interleaved; each output that is `shown`."""
    found = time_models(target, builts, settings)
    make_pixels(target, builts, images, sink)
    return found


def time_models(
    target: Target, builts: Sequence[Built], settings: BenchSettings
) -> tuple[Measurement, ...]:
    """The latencies of each model, interleaved, and what the board did meanwhile; no scores.

    Nothing is timed on a target that only simulates here: its models have no latencies.
    """
    host, versions = describe_host(), target.versions()
    measurements = [
        Measurement(
            role=built.role,
            target=built.target,
            precision=built.precision,
            size_bytes=built.size_bytes,
            versions=versions,
            simulated=target.simulated,
            host=host,
        )
        for built in builts
    ]
    if target.simulated:
        return tuple(measurements)
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
    return tuple(
        replace(
            m,
            latencies=tuple(found[name_of(built)] for found in by_size),
            notes=_busy(share),
            invalid_because=watch.throttled or _too_busy(share, settings),
            conditions={**board, **watch.conditions},
        )
        for m, built in zip(measurements, builts, strict=True)
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
