"""The forwards of one training step, and the loss terms they give.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.distill.ranks import Ranks
from mipkd.losses.base import Loss, Pass, Positions


@dataclass(frozen=True)
class Part:
    """Where some images stand in a training."""

    step: int
    rows: tuple[int, int]  # the first one's row in the step's batch, and how many that has


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
        autocast: torch.dtype | None,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.student, self.helpers = student, helpers
        self._teacher = (teacher,)  # a tuple, so that its weights are not this module's
        self.losses, self.positions, self.seed = losses, positions, seed
        self.autocast, self.ranks = autocast, ranks

    def forward(self, lr_NCHW: Tensor, hr_NCHW: Tensor, part: Part) -> dict[str, Tensor]:
        """Every loss's terms, weighted, in float32."""
        kind, on = lr_NCHW.device.type, self.autocast is not None
        with torch.autocast(kind, self.autocast, enabled=on):
            seen = self.seen(lr_NCHW, hr_NCHW, part)
            terms: dict[str, Tensor] = {}
            for name, loss in self.losses.items():
                helper = self.helpers[name] if name in self.helpers else None  # noqa: SIM401
                for term, value in loss(seen, helper).items():
                    # Two losses may have a term of one name.
                    terms[f"{name}.{term}" if term in terms else term] = value.float()
        return terms

    def seen(self, lr_NCHW: Tensor, hr_NCHW: Tensor, part: Part) -> Pass:
        """Both plain forwards, done once for all losses."""
        (teacher,) = self._teacher
        chance = np.random.SeedSequence([self.seed, part.step]).generate_state(2, np.uint64)
        generator = torch.Generator(lr_NCHW.device).manual_seed(int(chance[0] >> np.uint64(1)))
        image, features = self.student.tapped(lr_NCHW, self.positions.student)
        seen = Pass(
            lr_NCHW=lr_NCHW,
            hr_NCHW=hr_NCHW,
            student=self.student,
            student_image=image,
            student_features=features,
            teacher=teacher,
            positions=self.positions,
            generator=generator,
            coins=random.Random(int(chance[1])),
            rows=part.rows,
            mean=self.ranks.mean,
        )
        if teacher is not None:
            with torch.no_grad():
                taught = teacher.tapped(lr_NCHW, self.positions.teacher)
            seen.teacher_image, seen.teacher_features = taught
        return seen
