"""Train a student: shared forward passes, EMA, exact resume.

All random numbers of a step come from (seed, step): a resumed run repeats an uninterrupted one.
Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mipkd.archs.base import SRNet
from mipkd.core.health import BEFORE
from mipkd.distill import checkpoint, ranks
from mipkd.distill.batch import Sampler
from mipkd.distill.data import Pair
from mipkd.distill.gpu_sampler import choose_sampler
from mipkd.distill.health_probe import PROBE_PATCHES, HealthProbe
from mipkd.distill.interrupt import Interrupt
from mipkd.distill.latent_directions import read_cache_directions
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.progress import ProgressLog, curves_file
from mipkd.distill.settings import DistillConfig
from mipkd.distill.threads import tuned_threads
from mipkd.distill.train_step import Learner
from mipkd.distill.validate import Validation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The EMA student in eval mode on the CPU, and the record of its training."""

    student: SRNet
    curves: Path
    pictures: tuple[Path, ...]
    steps: int
    seconds: float
    losses: tuple[str, ...]
    psnr_y_db: float  # of the EMA student over the validation images; NaN without any


@dataclass(frozen=True)
class TrainingInputs:
    """The nets and patches of a training.

    The teacher is frozen and put into eval mode, its weights never change. `inherited` is what a
    projected student would have been without the projection, scored once for comparison.
    """

    config: DistillConfig  # with the learning rate for these first weights
    student: SRNet
    teacher: SRNet | None
    sampler: PatchSampler
    inherited: SRNet | None = None
    start_s: float = 0.0  # that the first weights took, a part of the training's time


def train(
    inputs: TrainingInputs, *, tests: Sequence[Pair], out: Path, until: int | None = None
) -> TrainResult:
    """Train the student in place for `config.steps`, continuing from a checkpoint in `out`; with
    `until` only so far, and from there on the next time.

    Raises:
        UsageError: settings that do not fit the nets or each other.
        StageError: a loss is not finite, or the disk is full.
        KeyboardInterrupt: Ctrl-C, after the last complete step has been saved.
    """
    config, mine = inputs.config, ranks.current()
    end = until or config.steps
    training = _Training(inputs, out)
    learner = training.learner
    learner.start(inputs.sampler)
    sampler = choose_sampler(inputs.sampler.share(mine.rank, mine.count), learner.device)
    if mine.rank:
        return _follow(training, sampler, end)
    validation = Validation(tests, inputs.teacher, out / "pictures", learner.device)
    probe = HealthProbe(learner, inputs.sampler.batch(0).select(slice(PROBE_PATCHES)))
    progress = ProgressLog(out, step=learner.step, steps=end)
    with (
        closing(progress),
        Interrupt() as interrupt,
        tuned_threads(config, learner.device) as run_step,
    ):
        if learner.step == 0:
            psnr = training.psnr_y_db = validation(learner.averaged, 0)
            references = _score_references(validation, psnr, inputs.inherited)
            progress.log_step(0, {}, 0.0, psnr, probe.measure() | references)
        while learner.step < end:
            terms = run_step(lambda: learner.advance(sampler))
            stops = mine.any(interrupt.requested)
            last = learner.step == end
            score, figures = None, dict[str, float]()
            if last or learner.step % config.validation_period == 0:
                score = training.psnr_y_db = validation(learner.averaged, learner.step)
                figures = probe.measure()
                probe.warn(figures)
            progress.log_step(learner.step, terms, learner.rate, score, figures)
            if last or stops or (learner.step % config.save_every == 0 and training.save_is_due()):
                training.save()
            if stops:
                log.info("interrupted: step %d is saved", learner.step)
                raise KeyboardInterrupt
    checkpoint.drop_older(out)
    return training.result(progress.file)


def _score_references(
    validation: Validation, start_db: float, inherited: SRNet | None
) -> dict[str, float]:
    """PSNR-Y in dB of what a projected start is compared with; nothing for another start."""
    if inherited is None or not validation.tests:
        return {}
    found = validation.score_references(inherited)
    others = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    log.info("before the first step: PSNR-Y %.2f dB; %s", start_db, others)
    return {BEFORE + name: value for name, value in found.items()}


def _follow(training: _Training, sampler: Sampler, end: int) -> TrainResult:
    """The same steps in a process that writes nothing."""
    learner = training.learner
    with Interrupt() as interrupt:
        while learner.step < end:
            learner.advance(sampler)
            if learner.ranks.any(interrupt.requested):
                raise KeyboardInterrupt
    return training.result(curves_file(training.out))


class _Training:
    """A learner, its time and quality so far, and its checkpoints in a folder."""

    def __init__(self, inputs: TrainingInputs, out: Path) -> None:
        config, cache = inputs.config, inputs.sampler.cache
        settings = config.model_dump_json(exclude={"save_every"})
        settings += cache.contents if cache else ""
        self.fits = checkpoint.fingerprint(settings, inputs.student, inputs.teacher)
        principal = read_cache_directions(cache)
        truth = inputs.sampler.has_truth
        nets = inputs.student, inputs.teacher
        self.learner = Learner(config, *nets, principal=principal, truth=truth)
        self.psnr_y_db, self.out = float("nan"), out
        self._before, self._start = inputs.start_s, time.perf_counter()
        self._next_save = 0.0
        state = checkpoint.load(out, self.fits)
        if state is not None:
            self.learner.load_state_dict(state["learner"])
            self._before, self.psnr_y_db = state["seconds"], state["psnr_y_db"]
            log.info("goes on at step %d of %d", self.learner.step, config.steps)

    @property
    def seconds(self) -> float:
        """Wall time of all sessions of this training, as far as they were saved."""
        return self._before + time.perf_counter() - self._start

    def save_is_due(self) -> bool:
        """Whether to save now: by default saves take 5 % of the time at most; always if the user
        set `save_every`."""
        set_by_user = "save_every" in self.learner.config.model_fields_set
        return set_by_user or time.perf_counter() >= self._next_save

    def save(self) -> None:
        """Write a checkpoint of the last complete step."""
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
        """The result of the training so far."""
        return TrainResult(
            student=self.learner.averaged.cpu(),
            curves=curves,
            pictures=tuple(sorted((self.out / "pictures").glob("*.png"))),
            steps=self.learner.step,
            seconds=round(self.seconds, 1),
            losses=tuple(self.learner.losses),
            psnr_y_db=self.psnr_y_db,
        )
