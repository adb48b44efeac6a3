"""Train a student: shared forwards, EMA, validation, exact resume.

All chance of a step comes from (seed, step), so a resumed run repeats an uninterrupted one.
Shapes: N batch, C channels, H W low-res size. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet, pair_positions
from mipkd.core.errors import StageError, UsageError
from mipkd.core.images import ByteArray, psnr_y, resize_bicubic, write_png
from mipkd.distill import checkpoint
from mipkd.distill.data import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.watch import Watch
from mipkd.losses.base import Loss, Pass, Positions

__all__ = ["DistillConfig", "TrainResult", "train"]

log = logging.getLogger(__name__)

Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
_PICTURES = 3  # validation images whose strips are saved


@dataclass(frozen=True)
class TrainResult:
    """The EMA student in eval mode on the CPU, and the trace of its training."""

    student: SRNet
    curves: Path
    pictures: tuple[Path, ...]
    steps: int
    seconds: float
    losses: tuple[str, ...]
    psnr_y_db: float


def train(
    config: DistillConfig,
    *,
    student: SRNet,
    teacher: SRNet | None,
    sampler: PatchSampler,
    tests: Sequence[Pair],
    out: Path,
) -> TrainResult:
    """Train `student` in place for `config.steps`, going on from a checkpoint in `out`.

    Raises:
        UsageError: a loss that needs a teacher without one.
        StageError: a loss is not finite, or the disk is full.
    """
    trainer = Trainer(config, student, teacher, out)
    trainer.resume()
    watch = Watch(out, config.steps)
    start = time.perf_counter()
    try:
        while trainer.step < config.steps:
            trainer.advance(sampler)
            last = trainer.step == config.steps
            psnr = trainer.validate(tests) if last or trainer.validates_now() else None
            watch.note(trainer.step, trainer.terms, trainer.rate, psnr)
            if last or trainer.step % config.save_every == 0:
                trainer.save(trainer.seconds + time.perf_counter() - start, watch.place())
    except KeyboardInterrupt:
        trainer.save(trainer.seconds + time.perf_counter() - start, watch.place())
        log.info("interrupted: step %d is saved", trainer.step)
        raise
    finally:
        watch.close()
    return TrainResult(
        student=trainer.averaged.cpu().eval(),
        curves=watch.file,
        pictures=tuple(sorted((out / "pictures").glob("*.png"))),
        steps=trainer.step,
        seconds=round(trainer.seconds + time.perf_counter() - start, 1),
        losses=tuple(trainer.losses),
        psnr_y_db=trainer.psnr_y_db,
    )


class Trainer:
    """The state of a training: nets, helpers, optimiser and step."""

    def __init__(
        self, config: DistillConfig, student: SRNet, teacher: SRNet | None, out: Path
    ) -> None:
        self.config, self.out = config, out
        self.losses = config.chosen()
        needy = [name for name, loss in self.losses.items() if loss.needs_teacher]
        if needy and teacher is None:
            raise UsageError(
                f"distill.losses: {', '.join(needy)} needs a teacher", hint="give --teacher FILE"
            )
        self.device, self.autocast = config.where()
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.student = student.to(self.device, memory_format=layout).train()  # type: ignore[call-overload]
        self.teacher = teacher
        if teacher is not None:
            teacher.to(self.device, memory_format=layout).eval().requires_grad_(False)  # type: ignore[call-overload]
        self.averaged = deepcopy(self.student).requires_grad_(False)
        featured = teacher is not None and any(x.needs_features for x in self.losses.values())
        self.positions = Positions((), ())
        if featured and teacher is not None:
            self.positions = Positions(*pair_positions(student, teacher, config.positions))
        torch.manual_seed(config.seed)
        self.helpers = _helpers(self.losses, student, teacher, self.positions)
        self.helpers.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        trained = [*self.student.parameters(), *self.helpers.parameters()]
        self.optimiser = torch.optim.Adam(trained, lr=config.lr, betas=config.betas)
        self.step, self.seconds, self.psnr_y_db = 0, 0.0, 0.0
        self.terms: dict[str, float] = {}
        self.rate = config.lr

    def advance(self, sampler: PatchSampler) -> None:
        """One step of the optimiser."""
        self.rate = self.config.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        lr, hr = (t.to(self.device, non_blocking=True) for t in sampler.batch(self.step))
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            terms = self._terms(self._passed(lr, hr))
            total = torch.stack([term.float() for term in terms.values()]).sum()
        self.terms = {name: float(term.detach()) for name, term in terms.items()}
        self._check_finite()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if self.config.clip_grad_norm:
            parameters = [p for g in self.optimiser.param_groups for p in g["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.clip_grad_norm)
        self.optimiser.step()
        self._average()
        self.step += 1

    def _passed(self, lr: Tensor, hr: Tensor) -> Pass:
        seeds = np.random.SeedSequence([self.config.seed, self.step]).generate_state(2)
        image, features = self.student.tapped(lr, self.positions.student)
        seen = Pass(
            lr_NCHW=lr,
            hr_NCHW=hr,
            student=self.student,
            student_image=image,
            student_features=features,
            teacher=self.teacher,
            positions=self.positions,
            generator=torch.Generator(self.device).manual_seed(int(seeds[0])),
            coins=random.Random(int(seeds[1])),
        )
        if self.teacher is not None and any(x.needs_teacher for x in self.losses.values()):
            with torch.no_grad():
                taught = self.teacher.tapped(lr, self.positions.teacher)
            seen.teacher_image, seen.teacher_features = taught
        return seen

    def _terms(self, seen: Pass) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            helper = self.helpers[name] if name in self.helpers else None  # noqa: SIM401
            terms |= loss(seen, helper)
        return terms

    def _check_finite(self) -> None:
        for name, value in self.terms.items():
            if not np.isfinite(value):
                raise StageError(
                    f"distill: step {self.step + 1}: loss term {name!r} is {value}",
                    hint="lower the rate (--set distill.lr=...) or --set distill.precision=fp32; "
                    "the last good checkpoint is kept",
                )

    @torch.no_grad()
    def _average(self) -> None:
        """The EMA; it follows faster at first, so that short runs forget their start."""
        rate = 1 - min(self.config.ema, (1 + self.step) / (10 + self.step))
        for mean, now in zip(self.averaged.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(now, rate)

    def validates_now(self) -> bool:
        """Whether this step is one of those that are validated."""
        every = self.config.validate_every or max(1, self.config.steps // 5)
        return self.step % every == 0

    def validate(self, tests: Sequence[Pair]) -> float:
        """Mean PSNR-Y of the EMA weights; saves strips of a few images."""
        folder = self.out / "pictures"
        folder.mkdir(exist_ok=True)
        scores = []
        for index, (name, lr, hr) in enumerate(tests):
            sr = self._upscaled(self.averaged, lr)
            scores.append(psnr_y(sr, hr, border=self.student.scale))
            if index < _PICTURES:
                taught = [self._upscaled(self.teacher, lr)] if self.teacher is not None else []
                strip = [resize_bicubic(lr, (hr.shape[0], hr.shape[1])), sr, *taught, hr]
                write_png(folder / f"{name}-{self.step:07d}.png", np.concatenate(strip, axis=1))
        self.psnr_y_db = float(np.mean(scores))
        return self.psnr_y_db

    def _upscaled(self, net: SRNet, lr_HWC: ByteArray) -> ByteArray:
        lr = torch.from_numpy(lr_HWC).permute(2, 0, 1)[None].to(self.device) / 255
        with torch.inference_mode():
            sr = net(lr)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
        image: ByteArray = sr.cpu().numpy()
        return image

    def save(self, seconds: float, curves_at: int) -> None:
        """Write a checkpoint of the last completed step."""
        state = {
            "step": self.step,
            "seconds": seconds,
            "curves_at": curves_at,
            "psnr_y_db": self.psnr_y_db,
            "student": self.student.state_dict(),
            "averaged": self.averaged.state_dict(),
            "helpers": self.helpers.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        checkpoint.save(self.out, state)

    def resume(self) -> None:
        """Go on from the checkpoint in the folder, if there is one."""
        state = checkpoint.load(self.out)
        curves = self.out / "metrics.jsonl"
        if state is None:
            curves.unlink(missing_ok=True)
            return
        for name in ("student", "averaged", "helpers", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        self.psnr_y_db = state["psnr_y_db"]
        with curves.open("r+b") as file:  # forget the steps after the checkpoint
            file.truncate(state["curves_at"])
        log.info("goes on at step %d of %d", self.step, self.config.steps)


def _helpers(
    losses: Mapping[str, Loss], student: SRNet, teacher: SRNet | None, positions: Positions
) -> nn.ModuleDict:
    made: dict[str, Any] = {n: x.helper(student, teacher, positions) for n, x in losses.items()}
    return nn.ModuleDict({name: helper for name, helper in made.items() if helper is not None})
