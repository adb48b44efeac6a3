"""The machine that runs the pipeline: jobs are done in its own process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mipkd.core.errors import MipkdError, StageError
from mipkd.core.measurement import Measurement
from mipkd.core.records import TargetInfo
from pipeline.bench.board import read_settings
from pipeline.bench.models import Sink, make_pixels, probe_target, time_models
from pipeline.machine.base import DeviceConfig, Job, ignore_pixels, refuse_changed
from targets.base import find


class Local:
    """This machine."""

    address = ""

    def __init__(self, config: DeviceConfig | None = None) -> None:
        """Nothing of the settings concerns this machine."""

    def offers(self, targets: Sequence[str]) -> dict[str, TargetInfo]:
        return {name: replace(probe_target(name), local=True) for name in targets}

    def run(self, job: Job, take: Sink = ignore_pixels) -> tuple[Measurement, ...]:
        target, now = find(job.info.target), read_settings()
        refuse_changed("this machine", job.info, replace(job.info, settings=now))
        try:
            found = time_models(target, job.builts, job.settings)
            make_pixels(target, job.builts, job.images, take)
        except (MipkdError, OSError):
            raise
        except Exception as error:  # whatever a runtime raises
            raise StageError(f"{type(error).__name__}: {error}") from error
        return found

    def close(self) -> None:
        """Nothing is open."""


MACHINE = Local
