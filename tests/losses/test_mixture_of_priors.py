"""The guards of METHOD: what the mixers must do at the ends of their ranges, and by hand."""

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mipkd.archs.base import SRNet, pair_positions
from mipkd.core import plugins
from mipkd.core.errors import UsageError
from mipkd.distill.settings import DistillConfig
from mipkd.losses._block_mixer import run_branches, run_chain, toss
from mipkd.losses._feature_mixer import FeatureMixer, Mixture, latent_width, mix, student_mask
from mipkd.losses._principal import PrincipalDirections, relative_error
from mipkd.losses._principal_mixer import PrincipalMixer
from mipkd.losses.base import Carrier, Pass, Positions, l1
from mipkd.losses.mixture_of_priors import Mixers, MixtureOfPriors

Tiny = Callable[[int, int], SRNet]
Look = Callable[..., Pass]
THREE = Positions((0, 1, 2), (0, 1, 2))
ENCODERS = ("pca", "cnn")


def transparent(count: int, width: int, encoder: str = "cnn") -> Mixers:
    """Mixers whose encoders and decoders change nothing."""
    if encoder == "pca":
        mixers = Mixers([PrincipalMixer(width, width, width) for _ in range(count)])
        for mixer in cast("list[PrincipalMixer]", mixers.each()):
            mixer.encode_student = mixer.to_student = nn.Identity()
        return mixers
    mixers = Mixers([FeatureMixer(width, width, width) for _ in range(count)])
    for mixer in cast("list[FeatureMixer]", mixers.each()):
        mixer.encode_student = mixer.encode_teacher = nn.Identity()
        mixer.trunk = mixer.to_teacher = nn.Identity()
    return mixers


def mixed(seen: Pass, mixers: Mixers, student_share: float) -> list[Mixture]:
    found = zip(mixers.each(), seen.student_features, seen.teacher_features, strict=True)
    return [
        mix(
            mixer.encode_student(s),
            mixer.encode_teacher(t),
            student_share=student_share,
            generator=seen.generator,
        )
        for mixer, s, t in found
    ]


def started(loss: MixtureOfPriors, seen: Pass) -> Mixers:
    helper = loss.helper(seen.student, seen.teacher, seen.positions)
    loss.start(seen, helper)
    return helper


def gradient(net: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_with_no_student_element_the_feature_loss_leaves_the_student_alone(
    encoder: str, tiny: Tiny, look: Look
) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3).requires_grad_(False)
    loss = MixtureOfPriors(mask_ratio=0, block_weight=0, encoder=encoder)
    seen = look(student, teacher, THREE)
    loss(seen, started(loss, seen))["feature"].backward()
    assert gradient(student) == 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_with_only_student_elements_the_mixture_sees_no_teacher(
    encoder: str, tiny: Tiny, look: Look
) -> None:
    seen = look(tiny(4, 3), tiny(6, 3), THREE)
    mixers = started(MixtureOfPriors(encoder=encoder), seen)
    other = replace(seen, teacher_features=[torch.randn_like(f) for f in seen.teacher_features])
    pairs = zip(mixed(seen, mixers, 1), mixed(other, mixers, 1), strict=True)
    assert all(torch.equal(a.mixed, b.mixed) for a, b in pairs)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("positions", [THREE, Positions((0, 2), (1, 2)), Positions((1,), (0,))])
@pytest.mark.parametrize(("carrier", "share"), [("student", 1.0), ("teacher", 0.0)])
def test_one_carrier_throughout_and_transparent_mixers_give_that_net(
    carrier: Carrier, share: float, positions: Positions, encoder: str, tiny: Tiny, look: Look
) -> None:
    student, teacher = tiny(5, 3), tiny(5, 3)
    seen = look(student, teacher, positions)
    mixers = transparent(len(positions.student), 5, encoder)
    mixtures = mixed(seen, mixers, share)
    whole = seen.student_image if carrier == "student" else seen.teacher_image
    assert whole is not None
    carriers = [carrier] * len(mixtures)
    images = run_branches(seen, mixers.each(), mixtures, carriers)
    for image in (run_chain(seen, mixers.each(), mixtures, carriers), *images):
        assert torch.equal(image, whole)


def test_the_teachers_own_features_through_its_directions_give_the_teacher(
    tiny: Tiny, look: Look
) -> None:
    seen = look(tiny(4, 3), tiny(6, 3), THREE)
    mixers = started(MixtureOfPriors(latent_width=6), seen)
    assert float(mixers.reconstruction_error(seen.teacher_features)) < 1e-5
    image = run_chain(seen, mixers.each(), mixed(seen, mixers, 0), ["teacher"] * 3)
    torch.testing.assert_close(image, seen.teacher_image, atol=1e-5, rtol=1e-5)


def test_fewer_directions_restore_less_and_the_error_is_of_the_worst_position(
    tiny: Tiny, look: Look
) -> None:
    seen = look(tiny(4, 3), tiny(6, 3), THREE)
    mixers = started(MixtureOfPriors(latent_width=2), seen)
    apart = [
        relative_error(cast("PrincipalMixer", mixer).principal, features)
        for mixer, features in zip(mixers.each(), seen.teacher_features, strict=True)
    ]
    error = float(mixers.reconstruction_error(seen.teacher_features))
    assert error == pytest.approx(max(apart), rel=1e-5)
    assert error > 0.05


def test_what_is_learned_starts_at_its_least_squares_solution(tiny: Tiny, look: Look) -> None:
    """A teacher whose features are a linear map of the student's is matched at once."""
    student = tiny(4, 3)
    seen = look(student, tiny(6, 3), THREE)
    chance = torch.Generator().manual_seed(1)
    maps = torch.randn(3, 6, 4, generator=chance)
    linear = [
        torch.einsum("dc,nchw->ndhw", m, f.detach()) + 1
        for m, f in zip(maps, seen.student_features, strict=True)
    ]
    seen = replace(seen, teacher_features=linear)
    loss = MixtureOfPriors(latent_width=4, mask_ratio=1, block_weight=0, feature_weight=1)
    mixers = started(loss, seen)
    assert float(loss(seen, mixers)["feature"].detach()) < 1e-3  # of the latents' size
    for mixer, mine, theirs in zip(mixers.each(), seen.student_features, linear, strict=True):
        back = mixer.decode(mixer.encode_teacher(theirs), "student")
        torch.testing.assert_close(back, mine, atol=1e-2, rtol=1e-2)


def test_the_feature_term_does_not_depend_on_the_nets_image_range(tiny: Tiny, look: Look) -> None:
    seen = look(tiny(4, 3), tiny(6, 3), THREE)
    large = replace(
        seen,
        student_features=[f * 255 for f in seen.student_features],
        teacher_features=[f * 255 for f in seen.teacher_features],
    )
    loss = MixtureOfPriors(mask_ratio=1, block_weight=0)
    one, other = (float(loss(s, started(loss, s))["feature"].detach()) for s in (seen, large))
    assert one == pytest.approx(other, rel=1e-3)


def test_kept_latents_give_the_terms_of_live_ones_within_16_bits(tiny: Tiny, look: Look) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3).requires_grad_(False)
    loss, seen = MixtureOfPriors(), look(student, teacher, THREE)
    principal = tuple(PrincipalDirections.fit(f, 5) for f in seen.teacher_features)
    mixers = started(loss, replace(seen, principal=principal))
    kept = tuple(
        directions.encode(f).half()
        for directions, f in zip(principal, seen.teacher_features, strict=True)
    )
    tosses: Any = {"mixture_of_priors": ("teacher", "student", "teacher")}
    live = loss(replace(look(student, teacher, THREE), tosses=tosses), mixers)
    again = replace(look(student, teacher, THREE), tosses=tosses)
    found = loss(replace(again, teacher_features=[], teacher_latents=kept), mixers)
    assert set(found) == set(live) == {"feature", "block"}
    for name, term in found.items():
        assert float(term.detach()) == pytest.approx(float(live[name].detach()), rel=2**-9), name


def test_a_saved_helper_brings_its_width_and_all_that_it_computes(tiny: Tiny, look: Look) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3)
    loss, seen = MixtureOfPriors(), look(student, teacher, THREE)
    principal = tuple(PrincipalDirections.fit(f, 3) for f in seen.teacher_features)
    before = started(loss, replace(seen, principal=principal))
    after = loss.helper(student, teacher, THREE)
    after.load_state_dict(before.state_dict())
    terms = [loss(look(student, teacher, THREE), helper) for helper in (before, after)]
    assert terms[0] == terms[1]


def test_settings_of_a_learned_auto_encoder_are_refused_without_one() -> None:
    for setting in ({"normalise": "always"}, {"autoencoder_weight": 1.0}):
        entry = {"name": "mixture_of_priors", "until": 1, **setting}
        with pytest.raises(UsageError, match=f"{next(iter(setting))} is a setting of encoder cnn"):
            DistillConfig(losses=(entry,)).build_losses()
        DistillConfig(losses=(entry | {"encoder": "cnn"},)).build_losses()


def test_the_chain_changes_nets_where_the_toss_says(tiny: Tiny, look: Look) -> None:
    student, teacher = tiny(5, 3), tiny(5, 3)
    seen, mixers = look(student, teacher, THREE), transparent(3, 5)
    carriers: tuple[Carrier, ...] = ("teacher", "student", "teacher")
    # All of the student's elements: what the teacher computed is left behind at position 1.
    image = run_chain(seen, mixers.each(), mixed(seen, mixers, 1), carriers)
    features = student.blocks[2](seen.student_features[1])
    by_hand = teacher.tail(features, teacher.head(seen.lr_NCHW), seen.lr_NCHW)
    assert torch.equal(image, by_hand)


def test_the_block_loss_reaches_the_student_through_frozen_teacher_blocks(
    tiny: Tiny, look: Look
) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3).requires_grad_(False)
    loss, seen = MixtureOfPriors(student_share=0, feature_weight=0), look(student, teacher, THREE)
    loss(seen, started(loss, seen))["block"].backward()
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
        terms = loss(seen, started(loss, seen))
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
    seen = Pass(one, one, net, one * 3, [one * 2], net, one * 5, [one * 6], positions=at)
    for share, expected in ((0.0, 0.0), (1.0, 4.0)):
        loss = MixtureOfPriors(
            encoder="cnn", mask_ratio=share, feature_weight=1, block_weight=0, normalise="never"
        )
        terms = loss(seen, transparent(1, 1))
        assert {k: v.item() for k, v in terms.items()} == {"feature": expected, "autoencoder": 0}
    # In units of |F_T| = 6.
    loss = MixtureOfPriors(
        encoder="cnn", mask_ratio=1, feature_weight=1, block_weight=0, normalise="always"
    )
    assert loss(seen, transparent(1, 1))["feature"].item() == pytest.approx(4 / 6)
    loss, mixers = MixtureOfPriors(mask_ratio=1, block_weight=0), transparent(1, 1, "pca")
    mixers.each()[0].magnitude.fill_(6)  # type: ignore[union-attr,operator]
    assert loss(seen, mixers)["feature"].item() == pytest.approx(0.2 * 4 / 6)


class OnePixel(SRNet):
    """One block that multiplies; head and tail add nothing."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.blocks, self.width, self.scale = nn.ModuleList([Times(1), Times(factor)]), 1, 1

    def head(self, lr_NCHW: Tensor) -> Tensor:
        return lr_NCHW

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
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
    seen = Pass(one, one, student, one, [one * 2], teacher, one * truth, [one], positions=at)
    loss = MixtureOfPriors(
        encoder="cnn", mask_ratio=1, student_share=share, feature_weight=0, block_weight=0.1
    )
    assert loss(seen, transparent(1, 1))["block"].item() == pytest.approx(expected)


def test_each_width_has_its_head(tiny: Tiny) -> None:
    latents = torch.rand(1, 5, 8, 8)
    for mixer in (FeatureMixer(4, 6, 5), PrincipalMixer(4, 6, 5)):
        assert mixer.decode(latents, "student").shape[1] == 4
        assert mixer.decode(latents, "teacher").shape[1] == 6
    assert FeatureMixer(4, 4, 4).to_student is None
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
    loss = MixtureOfPriors(encoder="cnn", block_weight=0)
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
    loss = MixtureOfPriors(encoder="cnn", feature_weight=1, mask_ratio=0.5, block_weight=0)
    seen, helper = look(student, teacher, THREE), loss.helper(student, teacher, THREE)
    feature = loss(seen, helper)["feature"]
    assert not bool(helper.in_use)
    seen = look(student, teacher, THREE)
    triples = zip(helper.each(), mixed(seen, helper, 0.5), seen.teacher_features, strict=True)
    distances = [l1(mixer.decode(z.mixed, "teacher"), f) for mixer, z, f in triples]
    torch.testing.assert_close(feature, torch.stack(distances).mean())


def test_normalisation_is_saved_with_the_helper(tiny: Tiny, look: Look) -> None:
    student, teacher = tiny(4, 3), tiny(6, 3)
    loss = MixtureOfPriors(encoder="cnn", normalise="always")
    helper = loss.helper(student, teacher, THREE)
    loss(look(student, teacher, THREE), helper)
    assert {"magnitude_K", "steps", "in_use"} <= set(helper.state_dict())
    assert int(helper.steps) == 1
