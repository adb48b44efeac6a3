"""The forward passes of one training step, and the loss terms they give.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.distill.batch import Batch
from mipkd.distill.ranks import Ranks
from mipkd.losses.base import PASSES, Loss, Pass, Positions, TeacherPass, Toss


def widest_pass(losses: Iterable[Loss]) -> TeacherPass:
    """The pass of the teacher that serves all of these losses."""
    return max((loss.reads for loss in losses), key=PASSES.index, default="none")


def pass_shares(losses: Sequence[Loss]) -> dict[TeacherPass, float]:
    """The share of the steps that need each pass of the teacher."""
    shares = dict.fromkeys(PASSES, 0.0)
    for start, end in pairwise(sorted({0.0, 1.0, *(loss.until for loss in losses)})):
        shares[widest_pass(loss for loss in losses if loss.until > start)] += end - start
    return shares


@dataclass(frozen=True)
class Objective:
    """What a training minimises: its losses, where they compare features, and their schedule."""

    losses: Mapping[str, Loss]
    positions: Positions
    steps: int
    seed: int

    def active_at(self, step: int) -> dict[str, Loss]:
        """The losses that are still switched on."""
        return {n: loss for n, loss in self.losses.items() if step < loss.until * self.steps}

    def wants_at(self, step: int) -> TeacherPass:
        """The pass of the teacher that these losses read."""
        return widest_pass(self.active_at(step).values())


class StepForward(nn.Module):
    """Student and helpers, as one module whose forward gives the loss terms.

    The teacher is not a submodule: it has no gradients to average over processes.
    """

    def __init__(
        self,
        objective: Objective,
        student: SRNet,
        teacher: SRNet | None,
        helpers: nn.ModuleDict,
        *,
        autocast: torch.dtype | None,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.objective, self.student, self.helpers = objective, student, helpers
        self._teacher = (teacher,)  # a tuple, so that its weights are not this module's
        self.autocast, self.ranks = autocast, ranks
        self.generator = torch.Generator(next(student.parameters()).device)
        self.prepare(0)

    @property
    def teacher(self) -> SRNet | None:
        """The frozen net, if there is one."""
        return self._teacher[0]

    def prepare(self, step: int) -> None:
        """Select the losses of a step and seed its random numbers."""
        self.active = self.objective.active_at(step)
        seeds = np.random.SeedSequence([self.objective.seed, step]).generate_state(2, np.uint64)
        self.generator.manual_seed(int(seeds[0] >> np.uint64(1)))
        self.coins = random.Random(int(seeds[1]))
        positions = self.objective.positions
        self.tosses = {n: loss.toss(self.coins, positions) for n, loss in self.active.items()}

    @property
    def key(self) -> tuple[tuple[str, Toss], ...]:
        """What the next forward computes, as far as it changes from step to step: the active
        losses, and which nets carry their mixed streams."""
        return tuple(self.tosses.items())

    def renew_generator(self) -> None:
        """Replace the generator, which a failed recording has made unusable, in its state."""
        seed = self.generator.initial_seed()
        self.generator = torch.Generator(self.generator.device).manual_seed(seed)

    def forward(self, batch: Batch, rows: tuple[int, int]) -> dict[str, Tensor]:
        """The weighted terms of the active losses, float32; `rows` as in `Pass`."""
        terms: dict[str, Tensor] = {}
        for name, found in self.terms_by_loss(batch, rows).items():
            for term, value in found.items():
                # Two losses may have a term of one name.
                terms[f"{name}.{term}" if term in terms else term] = value
        return terms

    def terms_by_loss(self, batch: Batch, rows: tuple[int, int]) -> dict[str, dict[str, Tensor]]:
        """The terms of each loss."""
        kind, on = batch.lr_NCHW.device.type, self.autocast is not None
        with torch.autocast(kind, self.autocast, enabled=on):
            seen = self.run_nets(batch, rows)
            found = {}
            for name, loss in self.active.items():
                helper = self.helpers[name] if name in self.helpers else None  # noqa: SIM401
                found[name] = {t: v.float() for t, v in loss(seen, helper).items()}
        return found

    def run_nets(self, batch: Batch, rows: tuple[int, int]) -> Pass:
        """One plain forward of each net for all losses; the teacher's only if it is not cached."""
        wants, positions = widest_pass(self.active.values()), self.objective.positions
        if wants not in ("latents", "features"):
            positions = Positions((), ())
        image, features = self.student.forward_with_taps(batch.lr_NCHW, positions.student)
        seen = Pass(
            lr_NCHW=batch.lr_NCHW,
            truth_NCHW=batch.hr_NCHW,
            student=self.student,
            student_image=image,
            student_features=features,
            teacher=self.teacher,
            teacher_image=batch.teacher_image,
            teacher_latents=batch.teacher_latents,
            positions=self.objective.positions,
            generator=self.generator,
            coins=self.coins,
            tosses=self.tosses,
            rows=rows,
            mean=self.ranks.mean,
        )
        if self.teacher is not None and not batch.serves(wants):
            with torch.no_grad():
                theirs = self.teacher.forward_with_taps(batch.lr_NCHW, positions.teacher)
            seen.teacher_image, seen.teacher_features = theirs
        return seen
