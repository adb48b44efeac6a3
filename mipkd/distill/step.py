"""The forwards of one training step, and the loss terms they give.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.distill.ranks import Ranks
from mipkd.losses.base import Loss, Pass, Positions


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
        device: torch.device,
        autocast: torch.dtype | None,
        ranks: Ranks,
    ) -> None:
        super().__init__()
        self.student, self.helpers = student, helpers
        self._teacher = (teacher,)  # a tuple, so that its weights are not this module's
        self.losses, self.positions, self.seed = losses, positions, seed
        self.autocast, self.ranks = autocast, ranks
        self.generator, self.coins = torch.Generator(device), random.Random()
        self.draw(0)

    def draw(self, step: int) -> None:
        """Make all chance of the next forward that of this step."""
        chance = np.random.SeedSequence([self.seed, step]).generate_state(2, np.uint64)
        self.generator.manual_seed(int(chance[0] >> np.uint64(1)))
        self.coins = random.Random(int(chance[1]))

    def renew(self) -> None:
        """A generator in the state of the present one, which a failed recording has spoiled."""
        seed = self.generator.initial_seed()
        self.generator = torch.Generator(self.generator.device).manual_seed(seed)

    def forward(self, lr_NCHW: Tensor, hr_NCHW: Tensor, rows: tuple[int, int]) -> dict[str, Tensor]:
        """Every loss's terms, weighted, in float32; `rows` as in `Pass`."""
        kind, on = lr_NCHW.device.type, self.autocast is not None
        with torch.autocast(kind, self.autocast, enabled=on):
            seen = self.seen(lr_NCHW, hr_NCHW, rows)
            terms: dict[str, Tensor] = {}
            for name, loss in self.losses.items():
                helper = self.helpers[name] if name in self.helpers else None  # noqa: SIM401
                for term, value in loss(seen, helper).items():
                    # Two losses may have a term of one name.
                    terms[f"{name}.{term}" if term in terms else term] = value.float()
        return terms

    def seen(self, lr_NCHW: Tensor, hr_NCHW: Tensor, rows: tuple[int, int]) -> Pass:
        """Both plain forwards, done once for all losses."""
        (teacher,) = self._teacher
        image, features = self.student.tapped(lr_NCHW, self.positions.student)
        seen = Pass(
            lr_NCHW=lr_NCHW,
            hr_NCHW=hr_NCHW,
            student=self.student,
            student_image=image,
            student_features=features,
            teacher=teacher,
            positions=self.positions,
            generator=self.generator,
            coins=self.coins,
            rows=rows,
            mean=self.ranks.mean,
        )
        if teacher is not None:
            with torch.no_grad():
                taught = teacher.tapped(lr_NCHW, self.positions.teacher)
            seen.teacher_image, seen.teacher_features = taught
        return seen
