"""The forwards of one training step, and the loss terms they give.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.distill.batch import Batch
from mipkd.distill.ranks import Ranks
from mipkd.losses.base import PASSES, Loss, Pass, Positions, TeacherPass, Toss


def most_read(losses: Iterable[Loss]) -> TeacherPass:
    """The pass of the teacher that serves all of them."""
    return max((loss.reads for loss in losses), key=PASSES.index, default="none")


def shares_read(losses: Sequence[Loss]) -> dict[TeacherPass, float]:
    """The share of the steps that each pass of the teacher serves."""
    shares = dict.fromkeys(PASSES, 0.0)
    for start, end in pairwise(sorted({0.0, 1.0, *(loss.until for loss in losses)})):
        shares[most_read(loss for loss in losses if loss.until > start)] += end - start
    return shares


class Step(nn.Module):
    """Student and helpers, as one module whose forward gives the loss terms.

    The teacher is not a part of it: it has nothing to be averaged over processes.
    """

    def __init__(
        self,
        student: SRNet,
        helpers: nn.ModuleDict,
        teacher: SRNet | None,
        losses: Mapping[str, Loss],
        positions: Positions,
        *,
        seed: int,
        steps: int,
        device: torch.device,
        autocast: torch.dtype | None,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.student, self.helpers = student, helpers
        self._teacher = (teacher,)  # a tuple, so that its weights are not this module's
        self.losses, self.positions = losses, positions
        self.seed, self.steps = seed, steps
        self.autocast, self.ranks = autocast, ranks
        self.generator, self.coins = torch.Generator(device), random.Random()
        self.draw(0)

    @property
    def teacher(self) -> SRNet | None:
        """The frozen net, if there is one."""
        return self._teacher[0]

    def draw(self, step: int) -> None:
        """Make all chance of the next forward that of this step, and its losses those at work."""
        self.active = self.active_at(step)
        chance = np.random.SeedSequence([self.seed, step]).generate_state(2, np.uint64)
        self.generator.manual_seed(int(chance[0] >> np.uint64(1)))
        self.coins = random.Random(int(chance[1]))
        self.tosses = {n: x.toss(self.coins, self.positions) for n, x in self.active.items()}

    @property
    def key(self) -> tuple[tuple[str, Toss], ...]:
        """What the next forward will compute, as far as that changes from step to step: the
        losses at work, and who carries their mixed streams."""
        return tuple(self.tosses.items())

    def active_at(self, step: int) -> dict[str, Loss]:
        """The losses that do not rest yet."""
        return {n: loss for n, loss in self.losses.items() if step < loss.until * self.steps}

    def wants_at(self, step: int) -> TeacherPass:
        """What the losses of a step read of the teacher's plain forward."""
        return most_read(self.active_at(step).values())

    def renew(self) -> None:
        """A generator in the state of the present one, which a failed recording has spoiled."""
        seed = self.generator.initial_seed()
        self.generator = torch.Generator(self.generator.device).manual_seed(seed)

    def forward(self, batch: Batch, rows: tuple[int, int]) -> dict[str, Tensor]:
        """The terms of the losses at work, weighted, in float32; `rows` as in `Pass`."""
        terms: dict[str, Tensor] = {}
        for name, found in self.by_loss(batch, rows).items():
            for term, value in found.items():
                # Two losses may have a term of one name.
                terms[f"{name}.{term}" if term in terms else term] = value
        return terms

    def by_loss(self, batch: Batch, rows: tuple[int, int]) -> dict[str, dict[str, Tensor]]:
        """The same, of each loss apart."""
        kind, on = batch.lr_NCHW.device.type, self.autocast is not None
        with torch.autocast(kind, self.autocast, enabled=on):
            seen = self.seen(batch, rows)
            found = {}
            for name, loss in self.active.items():
                helper = self.helpers[name] if name in self.helpers else None  # noqa: SIM401
                found[name] = {t: v.float() for t, v in loss(seen, helper).items()}
        return found

    def seen(self, batch: Batch, rows: tuple[int, int]) -> Pass:
        """The plain forwards, done once for all losses; the teacher's only where it is not kept."""
        teacher = self.teacher
        wants = most_read(self.active.values())
        taps = wants in ("latents", "features")
        image, features = self.student.tapped(batch.lr_NCHW, self.positions.student if taps else ())
        seen = Pass(
            lr_NCHW=batch.lr_NCHW,
            hr_NCHW=batch.hr_NCHW,
            student=self.student,
            student_image=image,
            student_features=features,
            teacher=teacher,
            teacher_image=batch.teacher_image,
            teacher_latents=batch.teacher_latents,
            positions=self.positions,
            generator=self.generator,
            coins=self.coins,
            tosses=self.tosses,
            rows=rows,
            mean=self.ranks.mean,
        )
        if teacher is not None and not _holds(batch, wants):
            with torch.no_grad():
                taught = teacher.tapped(batch.lr_NCHW, self.positions.teacher if taps else ())
            seen.teacher_image, seen.teacher_features = taught
        return seen


def _holds(batch: Batch, wants: TeacherPass) -> bool:
    """Whether all that is wanted of the teacher's plain forward came with the patches."""
    image = batch.teacher_image is not None
    latents = image and bool(batch.teacher_latents)
    return {"none": True, "image": image, "latents": latents, "features": False}[wants]
