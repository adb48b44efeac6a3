"""The models of one target on this machine: what it offers, their latencies and their pixels.

The same code measures in a run's own process and on a device that has numpy and the runtime only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from time import perf_counter

from mipkd.core.errors import MipkdError
from mipkd.core.measurement import Host, Measurement
from mipkd.core.records import Built, TargetInfo
from pipeline.bench.board import Watch, describe_changes, read_board, read_settings
from pipeline.bench.host import OtherPrograms, describe_host, is_emulated
from pipeline.bench.latency import BenchSettings, LoadCost, compare, measure_memory_rise
from pipeline.bench.power import power_source, why_unmetered
from targets._images import upscale
from targets.base import ByteArray, Session, Target, find

log = logging.getLogger(__name__)

Image = tuple[str, ByteArray]  # name, LR pixels
Sink = Callable[[Built, str, ByteArray], None]  # takes a model's output for an image

_BUSY = 0.05  # of the CPU's time taken by other programs: a note says so


def probe_target(name: str) -> TargetInfo:
    """One target on this machine; one that is unknown here, or broken, cannot run."""
    host, settings = describe_host(), read_settings()
    try:
        target = find(name)
        if reason := target.why_not():
            return TargetInfo(name, reason, target.simulated, (), {}, host)
        how = _is_untimed(target, host), _is_emulated(target, host)
        offered = target.precisions(), target.versions()
        return TargetInfo(name, "", how[0], *offered, host, settings=settings, emulated=how[1])
    except MipkdError as error:
        why = "; ".join(filter(None, (error.what, error.hint)))
    except Exception as error:  # whatever a runtime or a plug-in raises
        why = f"{type(error).__name__}: {error}"
    return TargetInfo(name, why, False, (), {}, host)


def time_models(
    target: Target, builts: Sequence[Built], settings: BenchSettings
) -> tuple[Measurement, ...]:
    """The latencies of each model, interleaved, and what the board did meanwhile; no scores.

    Nothing is timed on a target that only simulates here, and on an emulated processor: its models
    have no latencies.
    """
    measurements = list_untimed(target, builts)
    if target.simulated:
        return measurements
    kernels = [count_kernels(target, built) for built in builts]
    if is_emulated():
        return tuple(replace(m, kernels=k) for m, k in zip(measurements, kernels, strict=True))
    multiples = {name_of(b): b.multiple for b in builts}
    power, board, others = power_source(), read_board(), OtherPrograms()
    if why := "" if power else why_unmetered():
        board["power"] = f"not measured: {why}"
    by_size = []
    costs: dict[str, LoadCost] = {}
    with open_models(target, builts, costs) as sessions, Watch() as watch:
        for size in settings.sizes:
            log.debug("latency at LR %dx%d", size[1], size[0])
            by_size.append(
                compare(sessions, size, settings, multiples=multiples, power=power, costs=costs)
            )
    share, changed = others.share(), describe_changes(board, read_settings())
    doubt = f"settings changed while measured: {changed}" if changed else ""
    return tuple(
        replace(
            m,
            latencies=tuple(found[name_of(built)] for found in by_size),
            notes=note_if_busy(share),
            invalid_because=watch.throttled or doubt or why_too_busy(share, settings),
            conditions={**board, **watch.conditions},
            kernels=counted,
        )
        for m, built, counted in zip(measurements, builts, kernels, strict=True)
    )


def join_parts(parts: Sequence[tuple[Measurement, ...]]) -> tuple[Measurement, ...]:
    """What was measured of the same models in parts, one after another."""
    return tuple(_join(of_model) for of_model in zip(*parts, strict=True))


def _join(parts: Sequence[Measurement]) -> Measurement:
    reasons = dict.fromkeys(part.invalid_because for part in parts if part.invalid_because)
    return replace(
        parts[0],
        latencies=tuple(one for part in parts for one in part.latencies),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        invalid_because="; ".join(reasons),
        conditions={k: v for part in parts for k, v in part.conditions.items()},
        kernels={k: v for part in parts for k, v in part.kernels.items()},
        stream=next((part.stream for part in parts if part.stream), None),
    )


def count_kernels(target: Target, built: Built) -> dict[str, int]:
    """What the runtime tells of its kernels; what it does not tell is no failure of the model."""
    try:
        return target.count_kernels(built)
    except Exception as error:  # whatever a runtime raises
        log.info("%s %s: its kernels are not told: %s", target.name, name_of(built), error)
        return {}


def _is_untimed(target: Target, host: Host) -> bool:
    """Whether its times here would mean nothing."""
    return target.simulated or host.emulated


def _is_emulated(target: Target, host: Host) -> bool:
    """Whether the runtime itself runs here, on an emulated processor."""
    return host.emulated and not target.simulated


def list_untimed(target: Target, builts: Sequence[Built]) -> tuple[Measurement, ...]:
    """A record of each model that says what and where it is, without any figure."""
    host, versions = describe_host(), target.versions()
    return tuple(
        Measurement(
            role=built.role,
            target=built.target,
            precision=built.precision,
            size_bytes=built.size_bytes,
            versions=versions,
            simulated=_is_untimed(target, host),
            emulated=_is_emulated(target, host),
            host=host,
        )
        for built in builts
    )


def make_pixels(
    target: Target, builts: Sequence[Built], images: Iterable[Image], sink: Sink
) -> None:
    """Give the output for each image, of each model whose pixels are looked at, to `sink`."""
    makers = [built for built in builts if gives_pixels(built)]
    if not target.makes_pixels:
        return
    with open_models(target, makers) as sessions:
        for name, lr_HWC in images:
            for built in makers:
                session = sessions[name_of(built)]
                sr_HWC = upscale(session, lr_HWC, scale=built.scale, multiple=built.multiple)
                sink(built, name, sr_HWC)


def gives_pixels(built: Built) -> bool:
    """Whether its pixels are looked at: of a teacher only the speed is."""
    return built.role != "teacher"


@contextmanager
def open_models(
    target: Target, builts: Sequence[Built], costs: dict[str, LoadCost] | None = None
) -> Iterator[dict[str, Session]]:
    """A session of each model, by `name_of`; what it took to open goes into `costs`."""
    sessions: dict[str, Session] = {}
    with ExitStack() as stack:
        for built in builts:
            start = perf_counter()
            with measure_memory_rise() as bytes_more:
                session = target.open(built)
            if costs is not None:
                memory_bytes = bytes_more[0] if bytes_more else None
                costs[name_of(built)] = LoadCost(perf_counter() - start, memory_bytes)
            sessions[name_of(built)] = stack.enter_context(closing(session))
        yield sessions


def name_of(built: Built) -> str:
    """How a model is called among those of its target."""
    return f"{built.role} {built.precision}"


def why_too_busy(share: float, settings: BenchSettings) -> str:
    """Why nothing measured meanwhile should be believed, by what other programs took; else ""."""
    if share <= settings.max_busy:
        return ""
    return (
        f"busy machine: other programs took {share:.0%} of the CPU "
        f"(bound {settings.max_busy:.0%}, bench.max_busy)"
    )


def note_if_busy(share: float, during: str = "measurement") -> tuple[str, ...]:
    """A note of what other programs took where that is worth one; the log has it too."""
    if share <= _BUSY:
        return ()
    note = f"other programs took {share:.0%} of the CPU during the {during}"
    log.warning("%s: latencies are longer than on an idle machine", note)
    return (note,)
