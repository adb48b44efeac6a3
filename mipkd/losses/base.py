"""What a loss is: its own settings, the helpers it trains, and the maths.

Shapes: N batch, C channels, H W low-res size, S scale. Images: float32 in [0, 1], RGB.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.losses._principal import PrincipalDirections

# How much of the teacher's plain forward a loss reads, the least first. Latents are its features
# in the principal directions of their position.
TeacherPass = Literal["none", "image", "latents", "features"]
PASSES: tuple[TeacherPass, ...] = ("none", "image", "latents", "features")

Carrier = Literal["student", "teacher"]
Toss = tuple[Carrier, ...]  # who carries a mixed stream on after each position


@dataclass(frozen=True)
class Positions:
    """Where features are compared: pairs of indices into the two nets' `blocks`."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]


@dataclass
class Pass:
    """All that one training step knows; the plain forwards are done once and shared."""

    lr_NCHW: Tensor
    hr_NCHW: Tensor
    student: SRNet
    student_image: Tensor
    student_features: list[Tensor] = field(default_factory=list)
    teacher: SRNet | None = None
    teacher_image: Tensor | None = None
    teacher_features: list[Tensor] = field(default_factory=list)  # empty where latents are kept
    teacher_latents: tuple[Tensor, ...] = ()  # kept ones
    positions: Positions = Positions((), ())
    # All chance of a step is drawn from these two, seeded from (seed, step), so that a resumed
    # run repeats it. `coins` decides what Python branches on: no wait for the device.
    generator: torch.Generator | None = None
    coins: random.Random = field(default_factory=random.Random)
    # The batch may be a share of the step's: `rows` is its first row there and how many there are.
    # What is drawn for each image is drawn for all rows, so that any split draws the same.
    rows: tuple[int, int] | None = None
    mean: Callable[[Tensor], Tensor] = field(default=lambda values: values)  # over the shares
    principal: tuple[PrincipalDirections, ...] = ()  # that the kept latents are in
    tosses: Mapping[str, Toss] = field(default_factory=dict)  # of this step, by the loss's name


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference, in float32 also under autocast."""
    return (a.float() - b.float()).abs().mean()


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference, in float32 also under autocast: what PSNR counts."""
    return (a.float() - b.float()).square().mean()


Norm = Literal["l1", "l2"]
DISTANCES: dict[Norm, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2}


class Loss(BaseModel):
    """A loss is its own config: its fields are its settings, `__call__` the maths.

    Each module of `mipkd.losses` offers its class as `LOSS`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_teacher: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False

    weight: float = 1.0
    until: float = Field(1.0, gt=0, le=1)  # share of the steps after which it rests

    @property
    def reads(self) -> TeacherPass:
        """What it reads of the teacher's plain forward; it may run the teacher besides."""
        if self.needs_features:
            return "features"
        return "image" if self.needs_teacher else "none"

    @property
    def reads_width(self) -> int | None:
        """Of the latents it reads at each position; None: as many as restore the features."""
        return None

    def helper(
        self, student: SRNet, teacher: SRNet | None, positions: Positions
    ) -> nn.Module | None:
        """Modules trained beside the student and dropped afterwards; their buffers are saved."""
        return None

    def start(self, seen: Pass, helper: nn.Module | None) -> None:
        """Give the helper its first weights from patches that both nets have seen, the teacher's
        features included. Called once, before the first step; a resumed training has them."""

    def toss(self, coins: random.Random, positions: Positions) -> Toss:
        """Who carries the mixed stream on in a step; empty for a loss that mixes no blocks.

        Drawn before the step, so that a GPU can replay a recording of what was drawn.
        """
        return ()

    def served_by(self, teacher: SRNet) -> Loss | None:
        """This loss without what `teacher` does not offer; None if nothing is left."""
        return self if teacher.blocks or not self.needs_features else None

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised."""
        raise NotImplementedError
