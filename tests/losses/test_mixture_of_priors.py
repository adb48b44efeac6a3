"""The guards of METHOD: what the mixers must do at the ends of their ranges, and by hand."""

import logging
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet, pair_positions
from mipkd.core import plugins
from mipkd.losses._block_mixer import branches, chain, toss
from mipkd.losses._feature_mixer import Carrier, FeatureMixer, Latents, latent_width, student_mask
from mipkd.losses.base import Pass, Positions, l1
from mipkd.losses.mixture_of_priors import Mixers, MixtureOfPriors

Tiny = Callable[[int, int], SRNet]
Look = Callable[..., Pass]
THREE = Positions((0, 1, 2), (0, 1, 2))


def transparent(count: int, width: int) -> Mixers:
    """Mixers whose encoders and decoders change nothing."""
    mixers = Mixers(count, width, width, width)
    for mixer in mixers.each():
        mixer.encode_student = mixer.encode_teacher = nn.Identity()
        mixer.decoder.trunk = nn.Identity()  # type: ignore[assignment]
        mixer.decoder.to_teacher = nn.Identity()
    return mixers


def mixed(seen: Pass, mixers: Mixers, student_share: float) -> list[Latents]:
    return [
        mixer.mix(s, t, student_share=student_share, generator=seen.generator)
        for mixer, s, t in zip(
            mixers.each(), seen.student_features, seen.teacher_features, strict=True
        )
    ]


def gradient(net: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None)


def test_with_no_student_element_the_feature_loss_leaves_the_student_alone(
    tiny: Tiny, look: Look
) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3).requires_grad_(False)
    loss = MixtureOfPriors(mask_ratio=0, block_weight=0)
    loss(look(student, teacher, THREE), loss.helper(student, teacher, THREE))["feature"].backward()
    assert gradient(student) == 0


def test_with_only_student_elements_the_enhanced_feature_sees_no_teacher(
    tiny: Tiny, look: Look
) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3)
    seen, mixers = look(student, teacher, THREE), Mixers(3, 4, 6, 6)
    other = replace(seen, teacher_features=[torch.randn_like(f) for f in seen.teacher_features])
    pairs = zip(mixed(seen, mixers, 1), mixed(other, mixers, 1), strict=True)
    assert all(torch.equal(a.enhanced_NCHW, b.enhanced_NCHW) for a, b in pairs)


@pytest.mark.parametrize("positions", [THREE, Positions((0, 2), (1, 2)), Positions((1,), (0,))])
@pytest.mark.parametrize(("carrier", "share"), [("student", 1.0), ("teacher", 0.0)])
def test_one_carrier_throughout_and_transparent_mixers_give_that_net(
    carrier: Carrier, share: float, positions: Positions, tiny: Tiny, look: Look
) -> None:
    student, teacher = tiny(5, 3), tiny(5, 3)
    seen, mixers = look(student, teacher, positions), transparent(len(positions.student), 5)
    latents = mixed(seen, mixers, share)
    whole = seen.student_image if carrier == "student" else seen.teacher_image
    assert whole is not None
    carriers = [carrier] * len(latents)
    assert torch.equal(chain(seen, mixers.each(), latents, carriers), whole)
    for image in branches(seen, mixers.each(), latents, carriers):
        assert torch.equal(image, whole)


def test_the_chain_changes_nets_where_the_toss_says(tiny: Tiny, look: Look) -> None:
    student, teacher = tiny(5, 3), tiny(5, 3)
    seen, mixers = look(student, teacher, THREE), transparent(3, 5)
    carriers: tuple[Carrier, ...] = ("teacher", "student", "teacher")
    # All of the student's elements: what the teacher computed is left behind at position 1.
    image = chain(seen, mixers.each(), mixed(seen, mixers, 1), carriers)
    features = student.blocks[2](seen.student_features[1])
    by_hand = teacher.tail(features, teacher.head(seen.lr_NCHW))
    assert torch.equal(image, by_hand)


def test_the_block_loss_reaches_the_student_through_frozen_teacher_blocks(
    tiny: Tiny, look: Look
) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3).requires_grad_(False)
    loss = MixtureOfPriors(student_share=0, feature_weight=0, autoencoder_weight=0)
    terms = loss(look(student, teacher, THREE), loss.helper(student, teacher, THREE))
    terms["block"].backward()
    assert all(float(block.weight.grad.abs().sum()) > 0 for block in student.blocks)  # type: ignore[union-attr,operator]
    assert gradient(teacher) == 0


@pytest.mark.parametrize("path", ["chain", "branches"])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [("edsr", "rcan"), ("rcan", "edsr"), ("swinir", "edsr"), ("edsr", "swinir")],
)
def test_any_two_families_mix(student: str, teacher: str, path: str, look: Look) -> None:
    torch.manual_seed(0)
    small = small_net(student, width=4)
    large = small_net(teacher, width=8).eval().requires_grad_(False)
    positions = Positions(*pair_positions(small, large))
    loss = MixtureOfPriors(mixed_path=path)
    for seed in range(4):  # so that every pair of carriers is met
        seen = look(small, large, positions, seed)
        terms = loss(seen, loss.helper(small, large, positions))
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert gradient(small) > 0


def small_net(family: str, *, width: int) -> SRNet:
    arch = plugins.load("mipkd.archs", family, "ARCH")
    budget = {"edsr": f"c{width}b3", "rcan": f"c{width}b1g3", "swinir": f"c{width * 6}r2"}[family]
    net: SRNet = arch.make(arch.shrink(arch.paper(2), budget))
    return net


def test_by_hand_on_one_pixel() -> None:
    """F_S = 2, F_T = 6: the mask decides which of them meets F_T = 6."""
    net = SRNet()
    net.blocks, net.width, net.scale = nn.ModuleList([nn.Identity()]), 1, 2
    one = torch.ones(1, 1, 1, 1)
    at = Positions((0,), (0,))
    seen = Pass(one, one, net, one * 3, [one * 2], net, one * 5, [one * 6], at)
    for share, expected in ((0.0, 0.0), (1.0, 4.0)):
        loss = MixtureOfPriors(
            mask_ratio=share, feature_weight=1, block_weight=0, normalise="never"
        )
        terms = loss(seen, transparent(1, 1))
        assert {k: v.item() for k, v in terms.items()} == {"feature": expected, "autoencoder": 0}
    # In units of |F_T| = 6.
    loss = MixtureOfPriors(mask_ratio=1, feature_weight=1, block_weight=0, normalise="always")
    assert loss(seen, transparent(1, 1))["feature"].item() == pytest.approx(4 / 6)


class OnePixel(SRNet):
    """One block that multiplies; head and tail add nothing."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.blocks, self.width, self.scale = nn.ModuleList([Times(1), Times(factor)]), 1, 1

    def head(self, lr_NCHW: Tensor) -> Tensor:
        return lr_NCHW

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor) -> Tensor:
        return features_NCHW + shallow_NCHW


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW * self.factor


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.1 * 1.0), (0.0, 0.1 * 2.0)])
def test_block_loss_by_hand(share: float, expected: float) -> None:
    """The student's mixture 2 through the student's x2 or the teacher's x3, plus a shallow 1,
    against the teacher's image 6."""
    one = torch.ones(1, 1, 1, 1)
    student, teacher, at = OnePixel(2), OnePixel(3), Positions((0,), (0,))
    truth = {1.0: 6.0, 0.0: 9.0}[share]  # images: 2 * 2 + 1 = 5, and 2 * 3 + 1 = 7
    seen = Pass(one, one, student, one, [one * 2], teacher, one * truth, [one], at)
    loss = MixtureOfPriors(mask_ratio=1, student_share=share, feature_weight=0, block_weight=0.1)
    assert loss(seen, transparent(1, 1))["block"].item() == pytest.approx(expected)


def test_each_width_has_its_head(tiny: Tiny) -> None:
    mixer = FeatureMixer(4, 6, 5)
    latents = mixer.mix(
        torch.rand(1, 4, 8, 8), torch.rand(1, 6, 8, 8), student_share=0.5, generator=None
    )
    assert mixer.enhanced(latents, "student").shape[1] == 4
    assert mixer.enhanced(latents, "teacher").shape[1] == 6
    assert FeatureMixer(4, 4, 4).decoder.to_student is None
    assert (latent_width(32), latent_width(256)) == (32, 64)


def test_mask_is_as_full_as_asked_and_varies_over_all_four() -> None:
    like = torch.empty(4, 8, 16, 16)
    for share in (0.0, 0.25, 0.5, 1.0):
        mask = student_mask(like, student_share=share, generator=torch.Generator().manual_seed(0))
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert float(mask.mean()) == pytest.approx(share, abs=0.02)
    mask = student_mask(like, student_share=0.5, generator=torch.Generator().manual_seed(0))
    assert all(float(mask.std(dim=dim).min()) > 0 for dim in ((0, 1, 2), (0, 1, 3), (2, 3)))
    assert not torch.equal(mask[0], mask[1])


def test_toss_follows_its_share() -> None:
    carriers = toss(1000, student_share=0.25, coins=random.Random(0))
    assert carriers.count("student") == pytest.approx(250, abs=50)
    assert toss(3, student_share=1, coins=random.Random(0)) == ("student",) * 3
    assert toss(3, student_share=0, coins=random.Random(0)) == ("teacher",) * 3


def test_large_features_are_normalised_and_stay_so(
    tiny: Tiny, look: Look, caplog: pytest.LogCaptureFixture
) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3)
    seen = look(student, teacher, THREE)
    loss = MixtureOfPriors(block_weight=0)
    large = replace(seen, teacher_features=[f * 1e3 for f in seen.teacher_features])
    helper = loss.helper(student, teacher, THREE)
    with caplog.at_level(logging.INFO):
        first = loss(large, helper)
    assert first["feature"].item() < 2  # about 1: nothing is learned yet
    assert "L_feat / L_rec" in caplog.text
    assert "mean magnitude" in caplog.text
    assert bool(helper.in_use)
    loss(seen, helper)
    assert bool(helper.in_use)
    expected = (1000 + 1) / 2 * torch.stack([f.abs().mean() for f in seen.teacher_features])
    torch.testing.assert_close(helper.magnitude_K, expected)


def test_small_features_are_left_as_they_are(tiny: Tiny, look: Look) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3)
    loss = MixtureOfPriors(feature_weight=1, mask_ratio=0.5, block_weight=0)
    seen, helper = look(student, teacher, THREE), loss.helper(student, teacher, THREE)
    feature = loss(seen, helper)["feature"]
    assert not bool(helper.in_use)
    seen = look(student, teacher, THREE)
    distances = [
        l1(z.enhanced_NCHW, f)
        for z, f in zip(mixed(seen, helper, 0.5), seen.teacher_features, strict=True)
    ]
    torch.testing.assert_close(feature, torch.stack(distances).mean())


def test_normalisation_is_saved_with_the_helper(tiny: Tiny, look: Look) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3)
    loss = MixtureOfPriors(normalise="always")
    helper = loss.helper(student, teacher, THREE)
    loss(look(student, teacher, THREE), helper)
    assert {"magnitude_K", "steps", "in_use"} <= set(helper.state_dict())
    assert int(helper.steps) == 1
