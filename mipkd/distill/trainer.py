"""Train a student: shared forwards, EMA, exact resume.

All chance of a step comes from (seed, step), so a resumed run repeats an uninterrupted one.
Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mipkd.archs.base import SRNet
from mipkd.core.health import BEFORE
from mipkd.core.records import TeacherCache
from mipkd.distill import checkpoint, ranks
from mipkd.distill.batch import Sampler
from mipkd.distill.data import PatchSampler
from mipkd.distill.gpu_sampler import near
from mipkd.distill.health_probe import PROBE_PATCHES, Health
from mipkd.distill.interrupt import Interrupt
from mipkd.distill.latent_directions import principal_of
from mipkd.distill.progress import Watch, curves_file
from mipkd.distill.settings import DistillConfig
from mipkd.distill.train_step import Learner
from mipkd.distill.validate import Pair, Validation

__all__ = ["DistillConfig", "TrainResult", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The EMA student in eval mode on the CPU, and the trace of its training."""

    student: SRNet
    curves: Path
    pictures: tuple[Path, ...]
    steps: int
    seconds: float
    losses: tuple[str, ...]
    psnr_y_db: float  # of the EMA student over the validation images; NaN without any


def train(
    config: DistillConfig,
    *,
    student: SRNet,
    teacher: SRNet | None,
    sampler: PatchSampler,
    tests: Sequence[Pair],
    out: Path,
    inherited: SRNet | None = None,
    start_s: float = 0.0,
) -> TrainResult:
    """Train `student` in place for `config.steps`, going on from a checkpoint in `out`.

    `teacher` is frozen and put into eval mode, its weights are never written. `inherited` is what
    the student would have been without a projection, scored beside it before the first step;
    `start_s` is what its first weights took, and counts as training.

    Raises:
        UsageError: settings that do not fit the nets or each other.
        StageError: a loss is not finite, or the disk is full.
        KeyboardInterrupt: Ctrl-C, after the last whole step has been saved.
    """
    mine = ranks.current()
    training = _Training(config, student, teacher, sampler.cache, out, start_s)
    learner = training.learner
    mine.agree(learner.step)
    learner.start(sampler)
    nearby = near(sampler.share(mine.rank, mine.count), learner.device)
    if mine.rank:
        return _followed(training, nearby)
    validation = Validation(tests, teacher, out / "pictures", learner.device)
    health = Health(learner, sampler.batch(0).rows(slice(PROBE_PATCHES)))
    watch = Watch(out, step=learner.step, steps=config.steps)
    try:
        with Interrupt() as interrupt:
            if learner.step == 0:
                training.psnr_y_db = validation(learner.averaged, 0)
                figures = health.figures() | _beside(validation, training.psnr_y_db, inherited)
                watch.note(0, {}, 0.0, training.psnr_y_db, figures)
            while learner.step < config.steps:
                terms = learner.advance(nearby)
                stops = mine.any(interrupt.asked)
                last = learner.step == config.steps
                psnr, figures = None, dict[str, float]()
                if last or learner.step % config.validation_period == 0:
                    psnr = training.psnr_y_db = validation(learner.averaged, learner.step)
                    figures = health.figures()
                    health.warn(figures)
                watch.note(learner.step, terms, learner.rate, psnr, figures)
                if last or stops or (learner.step % config.save_every == 0 and training.due()):
                    training.save()
                if stops:
                    log.info("interrupted: step %d is saved", learner.step)
                    raise KeyboardInterrupt
    finally:
        watch.close()
    checkpoint.drop_older(out)
    return training.result(watch.file)


def _beside(validation: Validation, start_db: float, inherited: SRNet | None) -> dict[str, float]:
    """What a projected start is held against, PSNR-Y in dB; nothing for another start."""
    if inherited is None or not validation.tests:
        return {}
    found = validation.beside(inherited)
    others = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    log.info("before the first step: PSNR-Y %.2f dB; %s", start_db, others)
    return {BEFORE + name: value for name, value in found.items()}


def _followed(training: _Training, sampler: Sampler) -> TrainResult:
    """The same steps in a process that writes nothing."""
    learner = training.learner
    with Interrupt() as interrupt:
        while learner.step < learner.config.steps:
            learner.advance(sampler)
            if learner.ranks.any(interrupt.asked):
                raise KeyboardInterrupt
    return training.result(curves_file(training.out))


class _Training:
    """A learner, the time and quality it has come to, and its checkpoint in a folder."""

    def __init__(
        self,
        config: DistillConfig,
        student: SRNet,
        teacher: SRNet | None,
        cache: TeacherCache | None,
        out: Path,
        start_s: float,
    ) -> None:
        settings = config.model_dump_json(exclude={"save_every"})
        settings += cache.contents if cache else ""
        self.fits = checkpoint.fingerprint(settings, student, teacher)
        self.learner = Learner(config, student, teacher, principal=principal_of(cache))
        self.psnr_y_db, self.out = float("nan"), out
        self._before, self._start = start_s, time.perf_counter()
        self._next_save = 0.0
        state = checkpoint.load(out, self.fits)
        if state is not None:
            self.learner.load_state_dict(state["learner"])
            self._before, self.psnr_y_db = state["seconds"], state["psnr_y_db"]
            log.info("goes on at step %d of %d", self.learner.step, config.steps)

    @property
    def seconds(self) -> float:
        """Wall time of all the sessions of this training, as far as they were saved."""
        return self._before + time.perf_counter() - self._start

    def due(self) -> bool:
        """Whether enough has been done since the last save: by default saves may take 5 % of
        the time, `save_every` where it is set is kept."""
        set_by_user = "save_every" in self.learner.config.model_fields_set
        return set_by_user or time.perf_counter() >= self._next_save

    def save(self) -> None:
        """Write a checkpoint of the last completed step."""
        start = time.perf_counter()
        state = {
            "fits": self.fits,
            "seconds": self.seconds,
            "psnr_y_db": self.psnr_y_db,
            "learner": self.learner.state_dict(),
        }
        checkpoint.save(self.out, state)
        end = time.perf_counter()
        self._next_save = end + 20 * (end - start)

    def result(self, curves: Path) -> TrainResult:
        """What the whole training came to."""
        return TrainResult(
            student=self.learner.averaged.cpu(),
            curves=curves,
            pictures=tuple(sorted((self.out / "pictures").glob("*.png"))),
            steps=self.learner.step,
            seconds=round(self.seconds, 1),
            losses=tuple(self.learner.losses),
            psnr_y_db=self.psnr_y_db,
        )
