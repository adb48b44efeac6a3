"""Run what was built: raw latency samples, and the quality of the pixels it produced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mipkd.core.errors import StageError
from mipkd.core.records import Built, Host, ImageScore, Measurement, TestSet, Told
from mipkd.distill.data import load_tests
from pipeline.bench import parcel
from pipeline.bench.job import Done, carry_out, name_of
from pipeline.bench.latency import BenchSettings
from pipeline.bench.pixels import score_image
from pipeline.device.device import Device
from pipeline.run import NotInKey, Ref, stage
from targets.base import ByteArray, find


def disturbed(found: tuple[Measurement, ...]) -> bool:
    """Whether the machine was too busy, or throttled: the same command measures anew."""
    return any(one.invalid_because for one in found)


@dataclass(frozen=True)
class MeasureInputs:
    """All of one target's models, to be measured interleaved."""

    config: BenchSettings
    target: str
    builts: tuple[Ref[Built], ...]
    tests: Ref[TestSet]


@stage(version=4, retry_if=disturbed)
def measure(inputs: MeasureInputs, *, out: Path) -> tuple[Measurement, ...]:
    """Latencies interleaved, then the students' pixels."""
    config, builts, tests = inputs.config, [ref.value for ref in inputs.builts], inputs.tests.value
    chosen = find(inputs.target)
    scored = Scored(tests, out)
    images = ((name, lr_HWC) for name, lr_HWC, _ in load_tests(tests))
    done = carry_out(chosen, builts, images, config, scored.take)
    return measurements(builts, done, scored, chosen.versions(), simulated=chosen.simulated)


@dataclass(frozen=True)
class MeasureThereInputs:
    """The same for a device that told of the target."""

    config: BenchSettings
    told: Told
    builts: tuple[Ref[Built], ...]
    tests: Ref[TestSet]
    device: NotInKey[Device]


@stage(version=2)
def measure_there(inputs: MeasureThereInputs, *, out: Path) -> tuple[Measurement, ...]:
    """The same on a device: its pixels come back and are scored here."""
    config, told, device = inputs.config, inputs.told, inputs.device.value
    builts, tests = [ref.value for ref in inputs.builts], inputs.tests.value
    job, images = out / "job.zip", [(name, lr_HWC) for name, lr_HWC, _ in load_tests(tests)]
    id = parcel.write_job(job, told.target, builts, images, config)
    file = device.carry_out(job, id, told, out)
    results, outputs = parcel.read_results(file)
    if results.job != id or results.told != told:
        raise StageError(
            f"{device.address}: it changed while it measured: {told.target} is not what it was",
            hint="run the same command again",
        )
    scored = Scored(tests, out)
    for (model, image), sr_HWC in sorted(outputs.items()):
        scored.take(builts[model], images[image][0], sr_HWC)
    for parcelled in (job, file):
        parcelled.unlink()
    return measurements(
        builts,
        results.done,
        scored,
        results.told.versions,
        simulated=results.told.simulated,
        device=str(device.address),
        host=results.told.host,
    )


def measurements(
    builts: Sequence[Built],
    done: Done,
    scored: Scored,
    versions: dict[str, str],
    *,
    simulated: bool,
    device: str = "",
    host: Host | None = None,
) -> tuple[Measurement, ...]:
    """What came of a job, one record a model; `device` and `host` where it was done elsewhere."""
    return tuple(
        Measurement(
            role=built.role,
            target=built.target,
            precision=built.precision,
            size_bytes=built.size_bytes,
            latencies=found,
            scores=scored.of(built),
            outputs=scored.folder(built) if scored.of(built) else None,
            versions=versions,
            notes=(*built.notes, *done.notes),
            invalid_because=done.invalid_because,
            conditions=done.conditions,
            file=built.file,
            simulated=simulated,
            device=device,
            host=host,
        )
        for built, found in zip(builts, done.latencies, strict=True)
    )


class Scored:
    """Takes outputs, keeps them as PNG under `out` and their scores here."""

    def __init__(self, tests: TestSet, out: Path) -> None:
        self._truth = {name: hr_HWC for name, _, hr_HWC in load_tests(tests)}
        self._out = out
        self._scores: dict[str, list[ImageScore]] = {}

    def take(self, built: Built, image: str, sr_HWC: ByteArray) -> None:
        """Score one output, uint8 RGB of shape (S*H, S*W, 3)."""
        score = score_image(
            image,
            np.ascontiguousarray(sr_HWC),
            self._truth[image],
            scale=built.scale,
            out=self.folder(built),
        )
        self._scores.setdefault(name_of(built), []).append(score)

    def of(self, built: Built) -> tuple[ImageScore, ...]:
        """The scores of a model's outputs so far."""
        return tuple(self._scores.get(name_of(built), ()))

    def folder(self, built: Built) -> Path:
        """Where a model's outputs lie."""
        return self._out / name_of(built).replace(" ", "-")
