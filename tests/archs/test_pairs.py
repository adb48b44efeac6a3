"""Any family can teach any other, by every loss and in every way of mixing."""

import random
from typing import Any

import pytest
import torch
from torch import nn

from mipkd.archs.base import Arch, SRNet, pair_positions
from mipkd.core import plugins
from mipkd.losses.base import Loss, Pass, Positions

# A teacher is a little wider and deeper.
SIZES = {
    "edge": ("c12b3", "c8b2"),
    "edsr": ("c12b3", "c8b2"),
    "rcan": ("c12g3b1", "c8g2b1"),
    "rlfn": ("c12b3", "c8b2"),
    "swinir": ("c12r3", "c6r2"),
}
MIXERS: tuple[dict[str, Any], ...] = (
    {"student_share": 0.0},
    {"student_share": 1.0},
    {"mixed_path": "branches"},
)
LOSSES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in plugins.names("mipkd.losses")]
LOSSES += [("mixture_of_priors", settings) for settings in MIXERS]


def made(name: str, size: int) -> SRNet:
    from dataclasses import replace

    arch: Arch = plugins.load("mipkd.archs", name, "ARCH")
    hyper = arch.shrink(arch.paper(2), SIZES[name][size])
    return arch.make(replace(hyper, layers=2) if name == "swinir" else hyper)


def seen_by(student: SRNet, teacher: SRNet) -> Pass:
    generator = torch.Generator().manual_seed(0)
    lr = torch.rand(2, 3, 16, 16, generator=generator)
    positions = Positions(*pair_positions(student, teacher))
    image, features = student.tapped(lr, positions.student)
    with torch.no_grad():
        taught, truths = teacher.tapped(lr, positions.teacher)
    return Pass(
        lr_NCHW=lr,
        hr_NCHW=torch.rand(2, 3, 32, 32, generator=generator),
        student=student,
        student_image=image,
        student_features=features,
        teacher=teacher,
        teacher_image=taught,
        teacher_features=truths,
        positions=positions,
        generator=generator,
        coins=random.Random(0),
    )


def gradient(net: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("student_name", SIZES)
@pytest.mark.parametrize("teacher_name", SIZES)
def test_every_loss_teaches_the_student_of_any_teacher(
    teacher_name: str, student_name: str
) -> None:
    torch.manual_seed(0)
    student = made(student_name, 1)
    teacher = made(teacher_name, 0).eval().requires_grad_(False)
    for name, settings in LOSSES:
        loss: Loss = plugins.load("mipkd.losses", name, "LOSS")(**settings)
        seen = seen_by(student, teacher)
        helper = loss.helper(student, teacher, seen.positions)
        terms = loss(seen, helper)
        assert all(term.isfinite() for term in terms.values()), (name, settings)
        student.zero_grad()
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        assert gradient(student) > 0, (name, settings)
        assert gradient(teacher) == 0, (name, settings)


def test_every_family_is_among_the_pairs() -> None:
    assert set(SIZES) <= set(plugins.names("mipkd.archs"))
