"""What must hold of MiPKD and of every loss, by METHOD: which net teaches, which one learns."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mipkd.archs import edsr, rcan, swinir
from mipkd.archs.base import SRNet, pair_positions
from mipkd.core import plugins
from mipkd.losses._block_mixer import chain, toss
from mipkd.losses._feature_mixer import FeatureMixer, student_mask
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
    image, features = student.tapped(lr, positions.student)
    with torch.no_grad():
        taught, truths = teacher.tapped(lr, positions.teacher)
    return Pass(
        lr,
        hr,
        student,
        image,
        features,
        teacher,
        taught,
        truths,
        positions,
        generator,
        random.Random(seed),
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


@pytest.mark.parametrize(("share", "learns"), [(0.0, False), (0.5, True)])
def test_with_no_student_element_the_feature_loss_does_not_teach(
    share: float, learns: bool
) -> None:
    student, teacher = pair()
    loss = MixtureOfPriors(mask_ratio=share, block_weight=0)
    seen = seen_by(student, teacher)
    terms = loss(seen, loss.helper(student, teacher, seen.positions))
    sum(terms.values(), torch.zeros(())).backward()
    assert (gradient(student) > 0) == learns


def test_with_all_student_elements_the_mixture_sees_no_teacher() -> None:
    torch.manual_seed(0)
    mixer = FeatureMixer(8, 12, 12)
    s, t = torch.rand(1, 8, 6, 6), torch.rand(1, 12, 6, 6)
    one = mixer.mix(s, t, student_share=1.0, generator=None).enhanced_NCHW
    other = mixer.mix(s, t + 1, student_share=1.0, generator=None).enhanced_NCHW
    assert torch.equal(one, other)
    none = mixer.mix(s, t, student_share=0.0, generator=None).enhanced_NCHW
    assert torch.equal(none, mixer.mix(s + 1, t, student_share=0.0, generator=None).enhanced_NCHW)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_mask_varies_in_every_dimension_and_keeps_its_share(share: float) -> None:
    like = torch.zeros(4, 16, 20, 20)
    mask = student_mask(like, student_share=share, generator=torch.Generator().manual_seed(3))
    assert mask.shape == like.shape
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.02)
    if 0 < share < 1:
        for dim in range(4):
            assert bool((mask != mask.roll(1, dim)).any())


class Plain(FeatureMixer):
    """A mixer that passes the carrier's features on as they are."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, width)
        identity: Any = nn.Identity()
        self.encode_student = self.encode_teacher = identity
        self.decoder.trunk = identity
        self.decoder.to_teacher = identity


def mixed_image(student: SRNet, teacher: SRNet, share: float) -> tuple[Tensor, Pass]:
    seen = seen_by(student, teacher)
    mixers = [Plain(student.width) for _ in seen.positions.student]
    latents = [
        m.mix(s, t, student_share=share, generator=None)
        for m, s, t in zip(mixers, seen.student_features, seen.teacher_features, strict=True)
    ]
    carriers = toss(len(mixers), student_share=share, coins=random.Random(0))
    return chain(seen, mixers, latents, carriers), seen


def test_all_student_blocks_and_identity_mixers_give_the_student() -> None:
    student, teacher = pair("rcan", "edsr")
    image, seen = mixed_image(student, teacher, 1.0)
    assert torch.allclose(image, seen.student_image, atol=1e-6)


def test_all_teacher_blocks_fed_its_own_features_give_the_teacher() -> None:
    student, teacher = pair("rcan", "edsr")
    image, seen = mixed_image(student, teacher, 0.0)
    assert seen.teacher_image is not None
    assert torch.allclose(image, seen.teacher_image, atol=1e-6)


def test_gradients_reach_the_student_through_frozen_teacher_blocks() -> None:
    student, teacher = pair()
    loss = MixtureOfPriors(feature_weight=0, student_share=0.0)
    seen = seen_by(student, teacher)
    helper = loss.helper(student, teacher, seen.positions)
    loss(seen, helper)["block"].backward()
    assert gradient(student) > 0


def test_features_of_image_range_are_put_in_units_of_the_teachers() -> None:
    student, teacher = pair()
    seen = seen_by(student, teacher)
    sizes = {}
    for how in ("never", "auto"):
        torch.manual_seed(1)
        loss = MixtureOfPriors(normalise=how, block_weight=0)
        helper = loss.helper(student, teacher, seen.positions)
        sizes[how] = float(loss(seen, helper)["feature"].detach())
    assert sizes["never"] > 5 * sizes["auto"]
