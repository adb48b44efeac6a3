"""What a loss is: its settings, the helper modules it trains, and the maths.

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
from mipkd.core import plugins
from mipkd.core.errors import UsageError
from mipkd.losses._principal import PrincipalDirections

# What a loss reads of the teacher's plain forward, in ascending order. Latents are its features in
# the principal directions of their position.
TeacherPass = Literal["none", "image", "latents", "features"]
PASSES: tuple[TeacherPass, ...] = ("none", "image", "latents", "features")

Carrier = Literal["student", "teacher"]
Toss = tuple[Carrier, ...]  # which net carries a mixed stream on after each position


@dataclass(frozen=True)
class Positions:
    """Where features are compared: pairs of indices into the two nets' `blocks`."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]


@dataclass
class Pass:
    """The data of one training step, shared by all losses: each net runs forward once."""

    lr_NCHW: Tensor
    truth_NCHW: Tensor | None  # None of LR frames without truth
    student: SRNet
    student_image: Tensor
    student_features: list[Tensor] = field(default_factory=list)
    teacher: SRNet | None = None
    teacher_image: Tensor | None = None
    teacher_features: list[Tensor] = field(default_factory=list)  # empty where latents are cached
    teacher_latents: tuple[Tensor, ...] = ()  # from a cache
    positions: Positions = Positions((), ())
    # All random numbers of a step come from these two, seeded from (seed, step), so that a resumed
    # run repeats them. `coins` is for what Python branches on, without waiting for the device.
    generator: torch.Generator | None = None
    coins: random.Random = field(default_factory=random.Random)
    # The batch may be a part of the step's: `rows` are its first row there and the step's number of
    # rows. Random numbers per image are drawn for all rows, so that any split draws the same.
    rows: tuple[int, int] | None = None
    mean: Callable[[Tensor], Tensor] = field(default=lambda values: values)  # over all processes
    principal: tuple[PrincipalDirections, ...] = ()  # of the cached latents
    tosses: Mapping[str, Toss] = field(default_factory=dict)  # of this step, by loss

    @property
    def hr_NCHW(self) -> Tensor:  # noqa: N802 - a tensor, named by its shape
        """The ground truth.

        Raises:
            UsageError: there is none.
        """
        if self.truth_NCHW is None:
            raise UsageError(
                "distill.losses: one of them reads the truth, and the photos are LR frames without",
                hint="leave it out, or give HR photos: --data",
            )
        return self.truth_NCHW

    @property
    def target(self) -> Tensor:
        """The ground truth, (N, 3, S*H, S*W), or the teacher's image where there is none."""
        if self.truth_NCHW is None and self.teacher_image is not None:
            return self.teacher_image
        return self.hr_NCHW


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference, in float32 under autocast too."""
    return (a.float() - b.float()).abs().mean()


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference, in float32 under autocast too."""
    return (a.float() - b.float()).square().mean()


Norm = Literal["l1", "l2"]
DISTANCES: dict[Norm, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2}


class Loss(BaseModel):
    """A loss is its own config: its fields are its settings, `__call__` the maths.

    Each module of `mipkd.losses` offers its class as `LOSS`. A loss is also a method of its name:
    itself beside the losses that `beside` names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_teacher: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False
    truth_terms: ClassVar[tuple[str, ...]] = ()  # of its terms those that need a truth
    beside: ClassVar[tuple[str, ...]] = ("pixel",)

    weight: float = 1.0
    until: float = Field(1.0, gt=0, le=1)  # share of the steps after which it is switched off

    @property
    def reads(self) -> TeacherPass:
        """What it reads of the teacher's plain forward; it may run the teacher besides."""
        if self.needs_features:
            return "features"
        return "image" if self.needs_teacher else "none"

    @property
    def needs_truth(self) -> bool:
        """Whether nothing of it is left where there are LR frames without truth."""
        return not self.needs_teacher

    @property
    def reads_width(self) -> int | None:
        """Width of the latents it reads at each position; None: as many as restore the features."""
        return None

    def helper(
        self, student: SRNet, teacher: SRNet | None, positions: Positions
    ) -> nn.Module | None:
        """Modules trained beside the student and dropped afterwards; their buffers are saved."""
        return None

    def start(self, seen: Pass, helper: nn.Module | None) -> None:
        """Give the helper its first weights from both nets' features of the first patches.

        Called once, before the first step; a resumed training loads them.
        """

    def toss(self, coins: random.Random, positions: Positions) -> Toss:
        """Which net carries the mixed stream on in a step; empty for a loss that mixes no blocks.

        Drawn before the step, so that a GPU can replay a recording for each outcome.
        """
        return ()

    def restrict_to(self, teacher: SRNet) -> Loss | None:
        """This loss without what `teacher` does not offer; None if nothing is left."""
        return self if teacher.blocks or not self.needs_features else None

    def __call__(self, seen: Pass, helper: nn.Module | None) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised."""
        raise NotImplementedError


def load_loss(name: str) -> type[Loss]:
    """The loss `name`.

    Raises:
        UsageError: no such loss.
    """
    loss: type[Loss] = plugins.load("mipkd.losses", name, "LOSS", type)
    return loss


def loss_names() -> tuple[str, ...]:
    """The losses, sorted by name."""
    return plugins.names("mipkd.losses")
