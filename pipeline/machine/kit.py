"""A machine that a kit was carried to: it answers with what came back, for the job it was given."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mipkd.core.errors import UsageError
from mipkd.core.measurement import BY_KIT, Measurement
from mipkd.core.records import Built, TargetInfo
from pipeline.bench.models import Sink, name_of
from pipeline.machine.base import DeviceConfig, Job, ignore_pixels
from pipeline.machine.remote import job_file

ANEW = "make the kit anew: mipkd-pipeline kit RUN/bundle --target NAME"


class Kit:
    """The results of one kit.

    Raises:
        UsageError: no results, damaged or changed ones, or such as measured nothing.
    """

    address = BY_KIT

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found, self._outputs = job_file.read_results(file)
        self.asked = _read_asked(file, self._found.job)
        self.info, target = self._found.info, self.asked.target
        if self.info.target != target:
            raise UsageError(f"{file}: for {self.info.target}, its job for {target}")
        if self.info.simulated and not self.info.emulated:
            raise UsageError(f"{file}: {target} was only simulated there: nothing is measured")
        if len(self._found.measurements) != len(self.asked.builts):
            raise UsageError(f"{file}: damaged: not one entry a model", hint=ANEW)
        for built, m in zip(self.asked.builts, self._found.measurements, strict=True):
            if wrong := _whats_missing(m):
                what = f"{file}: {target} {name_of(built)}: not a measurement: {wrong}"
                raise UsageError(what, hint="measure again on the device with its kit")

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the job's models, in its order."""
        return tuple(name_of(built) for built in self.asked.builts)

    def offers(self, targets: Sequence[str]) -> dict[str, TargetInfo]:
        """The one target that it measured; nothing is known of the others."""
        why = f"this kit measured {self.info.target}"
        unknown = TargetInfo("", why, False, (), {}, self.info.host)
        return {
            name: self.info if name == self.info.target else replace(unknown, target=name)
            for name in targets
        }

    def run(self, job: Job, take: Sink = ignore_pixels) -> tuple[Measurement, ...]:
        """What the kit measured, if it was given these models and images.

        Raises:
            UsageError: it was given others.
        """
        self._check_models(job.builts)
        self._check_images(job)
        job_file.give_outputs(self._outputs, self.asked, job.builts, take)
        return self._found.measurements

    def close(self) -> None:
        """Nothing is open."""

    def _check_models(self, builts: Sequence[Built]) -> None:
        if tuple(map(name_of, builts)) != self.models:
            raise self._other(f"its models are {', '.join(self.models)}")
        for number, built in enumerate(builts):
            home, ours = f"models/{number}/", job_file.hash_files(built)
            theirs = {
                part.removeprefix(home): sha
                for part, sha in self.asked.files.items()
                if part.startswith(home)
            }
            if ours != theirs:
                part = next(n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n))
                what = f"{built.target} {name_of(built)} differs from this run's: {part}"
                raise self._other(what)

    def _check_images(self, job: Job) -> None:
        ours = {name: job_file.hash_image(lr_HWC) for name, lr_HWC in job.images}
        for number, name in enumerate(self.asked.images):
            if ours.get(name) != self.asked.files[f"images/{number}.npy"]:
                raise self._other(f"test image {name} differs from this run's")

    def _other(self, what: str) -> UsageError:
        return UsageError(f"{self._file}: of another run's kit: {what}", hint=ANEW)


def _read_asked(file: Path, id: str) -> job_file.StoredJob:
    """What the kit was asked to do; the hash of its text is the job's id."""
    try:
        with zipfile.ZipFile(file) as whole:
            text = whole.read(job_file.JOB)
    except job_file.DAMAGED as error:
        what = f"{file}: no results of a kit: no {job_file.JOB}"
        raise UsageError(what, hint=ANEW) from error
    if job_file.hash_of(text) != id:
        raise UsageError(f"{file}: {job_file.JOB} in it was changed", hint=ANEW)
    return job_file.parse_job(text, Path(), f"{file}: {job_file.JOB} in it")


def _machine(config: DeviceConfig) -> Kit:
    return Kit(Path((config.address or "").removeprefix("kit://")))


MACHINE = _machine


def _whats_missing(m: Measurement) -> str:
    """What a measurement must say and does not; "" if nothing. Its numbers have their ranges."""
    silent = any(not (one.samples_s or one.invalid_because) for one in m.latencies)
    return "no host" if m.host is None else "no samples" if silent else ""
