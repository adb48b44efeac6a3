"""Tiny nets, and a training step's knowledge of them."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mipkd.archs.base import Arch, SRNet
from mipkd.core import plugins
from mipkd.losses.base import Pass, Positions

# Sizes at which a family is quick to test; one that is not named is tested as the paper's student.
TINY: dict[str, dict[str, Any]] = {
    "edsr": {"channels": 8, "blocks": 2},
    "rcan": {"channels": 12, "groups": 2, "blocks": 1},
    "swinir": {"channels": 6, "groups": 2, "layers": 1},
    "rlfn": {"channels": 8, "blocks": 2, "middle": 8},
    "edge": {"channels": 8, "blocks": 2},
}


class TinyNet(SRNet):
    """`depth` convolutions at `width`; x2."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.scale, self.width = 2, width
        self.lift = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.up = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def head(self, lr_NCHW: Tensor) -> Tensor:
        shallow: Tensor = self.lift(lr_NCHW)
        return shallow

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        image: Tensor = self.up(features_NCHW + shallow_NCHW)
        return image


def look(student: SRNet, teacher: SRNet, positions: Positions, seed: int = 0) -> Pass:
    """What a step at 8x8 pixels knows."""
    chance = torch.Generator().manual_seed(seed)
    lr = torch.rand(3, 3, 8, 8, generator=chance)
    hr = torch.rand(3, 3, 8 * student.scale, 8 * student.scale, generator=chance)
    image, features = student.forward_with_taps(lr, positions.student)
    with torch.no_grad():
        taught, theirs = teacher.forward_with_taps(lr, positions.teacher)
    return Pass(
        lr_NCHW=lr,
        truth_NCHW=hr,
        student=student,
        student_image=image,
        student_features=features,
        teacher=teacher,
        teacher_image=taught,
        teacher_features=theirs,
        positions=positions,
        generator=chance,
        coins=random.Random(seed),
    )


@pytest.fixture(name="tiny")
def _tiny() -> Callable[[int, int], SRNet]:
    torch.manual_seed(0)
    return TinyNet


@pytest.fixture(name="look")
def _look() -> Callable[..., Pass]:
    return look


@pytest.fixture(name="small")
def _small() -> Callable[[str], SRNet]:
    """A tiny net of any family, x2; another one at each call."""
    torch.manual_seed(0)

    def make(family: str) -> SRNet:
        arch: Arch = plugins.load("mipkd.archs", family, "ARCH")
        return arch.make(replace(arch.paper(2), **TINY.get(family, {})))

    return make
