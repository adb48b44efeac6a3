"""Run a bundle's models on golden images on this machine, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mipkd.core.apart import Worker, report
from mipkd.core.errors import MipkdError, MissingError, UnsupportedError
from mipkd.core.images import read_rgb
from mipkd.core.measurement import Latency
from mipkd.core.precision import Tolerance, executed_precision
from mipkd.core.quiet import quiet
from mipkd.core.records import Built
from pipeline.bench.host import OtherPrograms, is_emulated
from pipeline.bench.latency import BenchSettings, compare
from pipeline.bench.models import count_kernels, make_pixels, open_models
from pipeline.bench.pixels import keep_output, output_file
from pipeline.bundle.golden import GOLDEN, LR, golden_folder, names_in
from pipeline.bundle.manifest import Manifest, Model, Problem, is_damaged, is_golden_damaged
from pipeline.bundle.trial import limits_of, opens_at_once, run_once
from pipeline.limits import LimitsConfig
from targets.base import ByteArray, Target, files_of, find

_IDLE = 0.05  # of the cores' time, taken by other programs


@dataclass(frozen=True)
class Replayed:
    """What one model made of golden images here; outputs only where it ran."""

    model: Model
    why_not: str = ""  # it could not be replayed here
    failed: str = ""  # it should have run here and did not
    outputs: Path | None = None  # folder of PNGs, named as the golden ones
    simulated: bool = False  # here, or on an emulated processor
    kernels: dict[str, int] = field(default_factory=dict)  # as in `Measurement`
    latency: Latency | None = None  # shortly looked at, where that was asked for
    size_bytes: int = 0  # of its files

    @property
    def tolerance(self) -> Tolerance:
        """How far it may be from what another machine made of the same images."""
        target, runs = find(self.model.target), executed_precision(self.kernels)
        kinds = {self.model.precision, self.model.executes, runs} - {""}
        return max((target.tolerance(kind) for kind in kinds), key=lambda bound: bound.levels)


def replay(
    bundle: Path,
    manifest: Manifest,
    wrong: Sequence[Problem],
    out: Path,
    *,
    settings: BenchSettings | None = None,
    inputs: Path | None = None,
    limits: LimitsConfig | None = None,
) -> Iterator[Replayed]:
    """Each model in turn, its outputs below `out`; one whose files are damaged is not opened.

    With `settings` each is timed too. `inputs` is a folder of LR images in the place of its own.
    What takes more than `limits` has failed.
    """
    with Worker() as worker:
        for model in manifest.models:
            if is_damaged(model, wrong):
                yield Replayed(model, why_not="its files are not those of the bundle")
                continue
            if not inputs and is_golden_damaged(model, wrong):
                yield Replayed(model, why_not="its golden images are not those of the bundle")
                continue
            outputs = out / model.name
            own = golden_folder(bundle, model.target, model.precision)
            lr, names = inputs or bundle / GOLDEN / LR, names_in(inputs or own)
            what = f"replay of {model.target} {model.precision}"
            try:
                worker.limits = limits_of(model.built(bundle), limits or LimitsConfig())
                yield worker.call(what, replay_model, bundle, model, lr, names, outputs, settings)
            except (MissingError, UnsupportedError) as error:
                yield Replayed(model, why_not=error.what)
            except Exception as error:  # one model's failure is a row
                yield Replayed(model, failed=_last_line(error))


def _last_line(error: Exception) -> str:
    """What went wrong in one line; a runtime's own message comes after where it was raised."""
    what = error.what if isinstance(error, MipkdError) else str(error)
    lines = [line for line in what.splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def replay_model(
    bundle: Path,
    model: Model,
    inputs: Path,
    names: Sequence[str],
    outputs: Path,
    settings: BenchSettings | None,
) -> Replayed:
    """One model on the named images of `inputs`.

    Raises:
        MipkdError: it does not run, or its output is no image.
    """
    target, built = find(model.target), model.built(bundle)
    if reason := target.why_not():
        return Replayed(model, why_not=reason)
    if not target.makes_pixels or not names:
        return Replayed(model, why_not="the bundle has no golden outputs of it")
    if opens_at_once(model.target):
        run_once(built)
    report()  # so that more time and memory are allowed; each image has its own time
    images = ((name, read_rgb(output_file(inputs, name))) for name in names)

    def keep(_: Built, image: str, sr_HWC: ByteArray) -> None:
        keep_output(image, sr_HWC, out=outputs)
        report()

    make_pixels(target, [built], images, keep)
    simulated = target.simulated or is_emulated()
    return Replayed(
        model,
        outputs=outputs,
        simulated=simulated,
        kernels=count_kernels(target, built),
        latency=_time(target, built, settings) if settings and not simulated else None,
        size_bytes=sum(file.stat().st_size for file in files_of(built)),
    )


def _time(target: Target, built: Built, settings: BenchSettings) -> Latency | None:
    """At the smallest size, with no meter read and no program of the board started.

    None on a busy machine, and where it is not known how busy it is.
    """
    if not Path("/proc/stat").exists():
        return None
    size, others = min(settings.sizes), OtherPrograms()
    with open_models(target, [built]) as sessions, quiet("pipeline.bench.latency"):
        multiples = dict.fromkeys(sessions, built.multiple)
        (found,) = compare(sessions, size, settings, multiples=multiples).values()
    return found if others.share() <= _IDLE else None
