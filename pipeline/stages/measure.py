"""Run what was built: raw latency samples, and the quality of the pixels it produced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mipkd.core.measurement import ImageScore, Measurement
from mipkd.core.records import Built, TargetInfo, TestSet
from mipkd.distill.data import load_probes, load_tests
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import name_of
from pipeline.bench.pixels import keep_output, score_image
from pipeline.machine.base import Job, Machine
from pipeline.stage import NotInKey, Ref, stage
from targets.base import ByteArray


def is_disturbed(found: tuple[Measurement, ...]) -> bool:
    """Whether the machine was too busy, or throttled: the same command measures anew."""
    return any(m.invalid_because or (m.stream and m.stream.invalid_because) for m in found)


@dataclass(frozen=True)
class MeasureInputs:
    """Models of one target, the images they are scored on, and the machine that runs them."""

    config: BenchSettings
    info: TargetInfo
    builts: tuple[Ref[Built], ...]
    tests: Ref[TestSet]
    machine: NotInKey[Machine]


@stage(version=11, retry_if=is_disturbed)
def measure(inputs: MeasureInputs, *, out: Path) -> tuple[Measurement, ...]:
    """All of one target's models: latencies interleaved, then the students' pixels."""
    builts = tuple(ref.value for ref in inputs.builts)
    job = Job(inputs.info, builts, inputs.config)
    return measure_on(inputs.machine.value, job, inputs.tests.value, out)


def measure_on(machine: Machine, job: Job, tests: TestSet, out: Path) -> tuple[Measurement, ...]:
    """Run a job on a machine, with the test set's images and probes: one record a model.

    Outputs are kept as PNG under `out`.
    """
    scored = Scored(tests, out)
    images = [*((name, lr_HWC) for name, lr_HWC, _ in load_tests(tests)), *load_probes(tests)]
    timed = machine.run(replace(job, images=images), scored.take)
    return tuple(
        replace(
            m,
            role=built.role,
            target=built.target,
            precision=built.precision,
            size_bytes=built.size_bytes,
            scores=scored.of(built),
            outputs=scored.folder(built) if scored.of(built) else None,
            notes=(*built.notes, *m.notes),
            file=built.file,
            refused_by=built.refused_by,
            device=machine.address,
            against=tests.against,
        )
        for m, built in zip(timed, job.builts, strict=True)
    )


class Scored:
    """Takes outputs, keeps them as PNG under `out` and their scores here."""

    def __init__(self, tests: TestSet, out: Path) -> None:
        self._truth = {name: hr_HWC for name, _, hr_HWC in load_tests(tests)}
        self._out = out
        self._scores: dict[str, list[ImageScore]] = {}

    def take(self, built: Built, image: str, sr_HWC: ByteArray) -> None:
        """Score one output, uint8 RGB of shape (S*H, S*W, 3); a probe's is only kept."""
        sr_HWC, out = np.ascontiguousarray(sr_HWC), self.folder(built)
        if image not in self._truth:
            keep_output(image, sr_HWC, out=out)
            return
        score = score_image(image, sr_HWC, self._truth[image], scale=built.scale, out=out)
        self._scores.setdefault(name_of(built), []).append(score)

    def of(self, built: Built) -> tuple[ImageScore, ...]:
        """The scores of a model's outputs so far."""
        return tuple(self._scores.get(name_of(built), ()))

    def folder(self, built: Built) -> Path:
        """Where a model's outputs lie."""
        return self._out / name_of(built).replace(" ", "-")
