"""What must hold of MiPKD and of every loss, by METHOD: which net teaches, which one learns."""

import random
from typing import Any

import pytest
import torch
from torch import nn

from mipkd.archs import edsr, rcan, swinir
from mipkd.archs.base import SRNet, pair_positions
from mipkd.core import plugins
from mipkd.losses._feature_mixer import student_mask
from mipkd.losses.base import Loss, Pass, Positions
from mipkd.losses.mixture_of_priors import MixtureOfPriors

NETS = {
    "edsr": lambda: edsr.EDSR(edsr.Hyper(2, channels=12, blocks=3)),
    "edsr-small": lambda: edsr.EDSR(edsr.Hyper(2, channels=8, blocks=2)),
    "rcan": lambda: rcan.RCAN(rcan.Hyper(2, channels=12, groups=3, blocks=1)),
    "swinir": lambda: swinir.SwinIR(swinir.Hyper(2, channels=12, groups=3, layers=1)),
}


def seen_by(student: SRNet, teacher: SRNet, seed: int = 0) -> Pass:
    generator = torch.Generator().manual_seed(seed)
    lr = torch.rand(2, 3, 16, 16, generator=generator)
    hr = torch.rand(2, 3, 32, 32, generator=generator)
    positions = Positions(*pair_positions(student, teacher, 2))
    image, features = student.forward_with_taps(lr, positions.student)
    with torch.no_grad():
        taught, truths = teacher.forward_with_taps(lr, positions.teacher)
    return Pass(
        lr_NCHW=lr,
        truth_NCHW=hr,
        student=student,
        student_image=image,
        student_features=features,
        teacher=teacher,
        teacher_image=taught,
        teacher_features=truths,
        positions=positions,
        generator=generator,
        coins=random.Random(seed),
    )


def pair(teacher: str = "edsr", student: str = "edsr-small") -> tuple[SRNet, SRNet]:
    torch.manual_seed(0)
    return NETS[student](), NETS[teacher]().eval().requires_grad_(False)


def gradient(net: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None)


def test_plain_losses_are_the_mean_absolute_difference() -> None:
    student, teacher = pair()
    seen = seen_by(student, teacher)
    for name, other in (("pixel", seen.hr_NCHW), ("logits", seen.teacher_image)):
        loss: Loss = plugins.load("mipkd.losses", name, "LOSS")(weight=2.0)
        (term,) = loss(seen, None).values()
        assert other is not None
        assert float(term.detach()) == pytest.approx(
            2 * float((seen.student_image.detach() - other).abs().mean())
        )


@pytest.mark.parametrize("encoder", ["pca", "cnn"])
@pytest.mark.parametrize(("share", "learns"), [(0.0, False), (0.5, True)])
def test_with_no_student_element_the_feature_loss_does_not_teach(
    share: float, learns: bool, encoder: Any
) -> None:
    student, teacher = pair()
    loss = MixtureOfPriors(mask_ratio=share, block_weight=0, encoder=encoder)
    seen = seen_by(student, teacher)
    helper = loss.helper(student, teacher, seen.positions)
    loss.start(seen, helper)
    terms = loss(seen, helper)
    sum(terms.values(), torch.zeros(())).backward()
    assert (gradient(student) > 0) == learns


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_mask_varies_in_every_dimension_and_keeps_its_share(share: float) -> None:
    like = torch.zeros(4, 16, 20, 20)
    mask = student_mask(like, student_share=share, generator=torch.Generator().manual_seed(3))
    assert mask.shape == like.shape
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.02)
    if 0 < share < 1:
        for dim in range(4):
            assert bool((mask != mask.roll(1, dim)).any())


def test_gradients_reach_the_student_through_frozen_teacher_blocks() -> None:
    student, teacher = pair()
    loss = MixtureOfPriors(feature_weight=0, student_share=0.0)
    seen = seen_by(student, teacher)
    helper = loss.helper(student, teacher, seen.positions)
    loss.start(seen, helper)
    loss(seen, helper)["block"].backward()
    assert gradient(student) > 0


def test_features_of_image_range_are_put_in_units_of_the_teachers() -> None:
    student, teacher = pair()
    seen = seen_by(student, teacher)
    sizes = {}
    for how in ("never", "auto"):
        torch.manual_seed(1)
        loss = MixtureOfPriors(encoder="cnn", normalise=how, block_weight=0)
        helper = loss.helper(student, teacher, seen.positions)
        sizes[how] = float(loss(seen, helper)["feature"].detach())
    assert sizes["never"] > 5 * sizes["auto"]
