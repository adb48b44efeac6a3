"""How fast this machine is now, timed in seconds: training steps, a net's forward pass, an export.

What is timed is real: the run's own nets and settings, on noise. What was timed before is not timed
again. Shapes: N batch, C channels, H W low-res size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from mipkd.archs.base import SRNet, load_arch
from mipkd.core import memory
from mipkd.core.errors import MipkdError, StageError
from mipkd.core.images import downscale, resize_bicubic
from mipkd.core.photos import PhotoWriter
from mipkd.core.records import Model, Photos, TeacherCache
from mipkd.distill import ranks
from mipkd.distill.settings import DistillConfig
from mipkd.distill.step_timing import time_steps
from mipkd.distill.threads import fixed_threads
from mipkd.distill.training_task import TrainingTask
from mipkd.export.onnx import export
from pipeline.plan.timings import Timing, Timings
from pipeline.stage import NotInKey, ready
from pipeline.stages.teacher_cache import (
    DirectionsInputs,
    TeacherCacheInputs,
    directions,
    teacher_cache,
)

log = logging.getLogger(__name__)

_SIDE = 96  # LR pixels a side of the image that a forward pass is timed on
_PHOTO = 128  # LR pixels a side of the photos of noise, at least
_USUAL_S = 0.0036  # of `_work` on the machine that the estimates' constants come from, when idle
_BUSY = 1.3  # times slower than idle, from where other numbers of threads are tried
_LONG_S = 1.0  # that work and forward passes are timed: a busy machine's pace moves


@dataclass(frozen=True)
class Sized:
    """A net by what decides its speed: a family of ours and its sizes."""

    arch: str
    hyper: Any

    @property
    def decides(self) -> dict[str, Any]:
        """For a timing's kind."""
        return {"net": [self.arch, repr(self.hyper)]}

    def make(self) -> SRNet:
        """The net, with random weights."""
        torch.manual_seed(0)
        return load_arch(self.arch).make(self.hyper).eval()


@dataclass(frozen=True)
class Kept:
    """What a training reads of its teacher from a cache."""

    device: str
    directions: DirectionsInputs | None  # of its latents


def time_work() -> float:
    """How many times slower this machine is now than an idle one that constants come from."""
    _work()
    start, turns = perf_counter(), 0
    while perf_counter() - start < _LONG_S:
        _work()
        turns += 1
    return (perf_counter() - start) / turns / _USUAL_S


def _work() -> None:
    """A bit of what all steps do: numpy on small images, called from Python, on one core."""
    for _ in range(4):
        resize_bicubic(np.zeros((192, 192, 3), np.uint8), (96, 96))


def time_pixel(timings: Timings, decides: dict[str, Any], load: Callable[[], SRNet]) -> float:
    """Seconds that a net's forward pass takes for an LR pixel, on one core.

    On more it depends on what else runs: threads wait for each other.
    """
    if known := timings.find("forward", decides):
        return known.each_s
    net = load()
    side = -(-max(_SIDE, net.least) // net.multiple) * net.multiple
    lr_NCHW = torch.rand(1, 3, side, side)
    with torch.inference_mode(), fixed_threads(1):
        net(lr_NCHW)
        start, passes = perf_counter(), 0
        while perf_counter() - start < _LONG_S:
            net(lr_NCHW)
            passes += 1
    found = Timing(perf_counter() - start, passes * side * side)
    timings.note("forward", decides, found)
    return found.each_s


def time_export(timings: Timings, net: Sized, folder: Path) -> float | None:
    """Seconds that the export of a net takes; None where torch cannot."""
    if known := timings.find("export", net.decides):
        return known.seconds
    start = perf_counter()
    folder.mkdir()
    try:
        export(net.make(), out=folder, metadata={}, role="student", family=net.arch)
    except MipkdError as error:  # the run's own export says so
        log.debug("an export cannot be timed: %s", error.what)
        return None
    found = Timing(perf_counter() - start)
    timings.note("export", net.decides, found)
    return found.seconds


def time_step(
    timings: Timings,
    config: DistillConfig,
    student: Sized,
    teacher: Model,
    kept: Kept | None,
    folder: Path,
    slowness: float,
) -> Timing | None:
    """One training step, with its memory; None where it cannot be timed here."""
    settings = config.model_dump(exclude={"steps", "seed", "validate_every", "save_every", "init"})
    decides = {**student.decides, "teacher": [teacher.arch, teacher.hyper], "config": settings}
    latents = kept.directions if kept else None
    decides |= {"cache": bool(kept), "latents": latents and [latents.positions, latents.width]}
    if known := timings.find("step", decides):
        return known
    if ranks.current().count > 1:
        return None  # the other processes would have to take part
    memory.reset_peak()
    try:
        photos = _store_noise(folder / "photos", teacher.scale, max(_PHOTO, config.patch))
        task = TrainingTask(
            student.arch, student.hyper, teacher, photos, _fill(kept, teacher, photos, folder)
        )
        timed = config.model_copy(update={"init": "random", "compile": False})
        step_s = min(_time_with(count, timed, task) for count in _numbers(config, slowness))
    except MipkdError as error:
        log.info("a training step cannot be timed: %s", error.what)
        return None
    found = Timing(step_s, 1.0, memory.peak_bytes())
    timings.note("step", decides, found)
    return found


def _numbers(config: DistillConfig, slowness: float) -> tuple[int, ...]:
    """Of threads that a training may find to be the fastest: one where others keep cores busy."""
    if config.threads:
        return (config.threads,)
    most = torch.get_num_threads()
    return (1, most) if most > 1 and slowness > _BUSY else (most,)


def _time_with(count: int, config: DistillConfig, task: TrainingTask) -> float:
    """Seconds that a step takes with as many threads.

    Raises:
        StageError: it fails.
    """
    with fixed_threads(count):
        pace = time_steps({"step": config}, {"step": task}, places=2, rounds=2)["step"]
    if pace.why_not:
        raise StageError(pace.why_not)
    return pace.step_s


def _fill(kept: Kept | None, teacher: Model, photos: Photos, folder: Path) -> TeacherCache | None:
    """The cache of the training, of other photos."""
    if kept is None:
        return None
    known, found = ready(teacher), None
    for name in ("directions", "cache"):
        (folder / name).mkdir()
    if kept.directions:
        asked = replace(kept.directions, teacher=known, photos=ready(photos))
        found = ready(directions.function(asked, out=folder / "directions"))
    inputs = TeacherCacheInputs(known, ready(photos), found, kept.device, NotInKey(None))
    return teacher_cache.function(inputs, out=folder / "cache")


def _store_noise(folder: Path, scale: int, side: int) -> Photos:
    """Two photos."""
    folder.mkdir(parents=True)
    writer, rng = PhotoWriter(folder), np.random.default_rng(0)
    for number in range(2):
        hr_HWC = rng.integers(0, 256, (side * scale, side * scale, 3), dtype=np.uint8)
        writer.add(f"noise-{number}", hr_HWC, downscale(hr_HWC, scale))
    writer.close()
    return Photos(folder, "noise", "noise", scale, count=2)
