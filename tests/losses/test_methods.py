"""Methods as a training meets them: named in the settings, and several losses in one step."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mipkd.archs.base import SRNet, pair_positions
from mipkd.distill.batch import Batch
from mipkd.distill.settings import DistillConfig, method_names
from mipkd.distill.train_step import Learner
from mipkd.losses._principal import PrincipalDirections
from mipkd.losses.base import TeacherPass
from mipkd.losses.mixture_of_priors import Mixers

BASELINES = ("fitnet", "at", "rkd", "fakd", "crosskd")


class Noise:
    """Patches of noise."""

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        chance = torch.Generator().manual_seed(step)
        return Batch(*(torch.rand(3, 3, side, side, generator=chance) for side in (8, 16)))


def stepped(config: DistillConfig, student: SRNet, teacher: SRNet) -> dict[str, float]:
    learner = Learner(config, student, teacher)
    learner.advance(Noise())
    return learner.advance(Noise())


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_is_logits_and_its_own_loss(method: str) -> None:
    chosen = tuple(DistillConfig(method=method).build_losses())
    # CrossKD matches the teacher's image through the teacher's blocks instead.
    base = ("pixel",) if method == "crosskd" else ("pixel", "logits")
    assert chosen == (*base, method)


@pytest.mark.parametrize("method", [*method_names(), None])
def test_upcycled_data_joins_any_method(method: str | None, small: Callable[[str], SRNet]) -> None:
    names = dict.fromkeys([*DistillConfig(method=method).build_losses(), "dukd"])
    entries = tuple({"name": name} for name in names)
    config = DistillConfig(losses=entries, patch=8, device="cpu", precision="fp32")
    terms = stepped(config, small("edsr"), small("rcan"))
    assert {"zoom_in", "zoom_out"} <= set(terms)
    assert terms == stepped(config, *again(small))


@pytest.mark.parametrize("method", ["mipkd", "feature_prior", "paper"])
def test_the_mixtures_teach_the_students_body(method: str, small: Callable[[str], SRNet]) -> None:
    assert body_gradient(method, small) > 0


def test_the_control_leaves_the_students_body_alone(small: Callable[[str], SRNet]) -> None:
    assert body_gradient("control", small) == 0
    loss = DistillConfig(method="control").build_losses()["mixture_of_priors"]
    assert (
        loss.block_weight
        == DistillConfig(method="mipkd").build_losses()["mixture_of_priors"].block_weight
    )  # type: ignore[attr-defined]


def body_gradient(method: str, small: Callable[[str], SRNet]) -> float:
    """Of all terms of the mixture on the student's blocks, over a few steps' tosses."""
    config = DistillConfig(method=method, patch=8, device="cpu", precision="fp32")
    learner = Learner(config, small("edsr"), small("rcan"))
    learner.start(Noise())
    total = 0.0
    for number in range(4):
        learner.forward.prepare(number)
        terms = learner.forward.terms_by_loss(Noise().batch(number), (0, 3))["mixture_of_priors"]
        body = list(learner.student.blocks.parameters())
        wanted = torch.stack(list(terms.values())).sum()
        for found in torch.autograd.grad(wanted, body, allow_unused=True):
            total += float(found.abs().sum()) if found is not None else 0.0
    return total


def test_the_papers_recipe_comes_with_its_method_and_gives_way_to_the_user() -> None:
    paper = DistillConfig(method="paper")
    assert (paper.init, paper.lr, paper.schedule, paper.warmup) == ("random", 1e-4, "multistep", 0)
    assert DistillConfig(method="paper", lr=1e-3).lr == 1e-3
    assert DistillConfig(method="mipkd") == DistillConfig().model_copy(update={"method": "mipkd"})


def test_a_loss_that_rests_has_no_terms_no_taps_and_moves_no_weight(
    small: Callable[[str], SRNet],
) -> None:
    config = DistillConfig(method="mipkd", steps=8, patch=8, device="cpu", precision="fp32")
    learner = Learner(config, small("edsr"), small("rcan"))
    assert [learner.forward.objective.wants_at(step) for step in (3, 4)] == ["latents", "image"]
    for _ in range(4):
        learner.advance(Noise())
    helper = list(learner.helpers.parameters())
    weights = [parameter.clone() for parameter in helper]
    moments = [deepcopy(learner.optimiser.state.get(parameter)) for parameter in helper]
    assert any(moments)
    for _ in range(3):
        assert set(learner.advance(Noise())) == {"pixel", "logits"}
    assert learner.forward.run_nets(Noise().batch(0), (0, 3)).student_features == []
    assert all(torch.equal(a, b) for a, b in zip(helper, weights, strict=True))
    for parameter, before in zip(helper, moments, strict=True):
        after = learner.optimiser.state.get(parameter)
        assert (after is None) == (before is None)
        if before:
            assert all(torch.equal(after[name], value) for name, value in before.items())


class Kept(Noise):
    """The same patches, with what the teacher made of them in 16 bits."""

    def __init__(self, teacher: SRNet, positions: tuple[int, ...], width: int) -> None:
        self.teacher, self.positions = teacher, positions
        _, features = self.taught(super().batch(0))
        self.principal = [PrincipalDirections.fit(f, width) for f in features]

    @torch.no_grad()
    def taught(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        return self.teacher.forward_with_taps(batch.lr_NCHW, self.positions)

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        batch = super().batch(step)
        if wants == "none":
            return batch
        image, features = self.taught(batch)
        encoded = (d.encode(f).half() for d, f in zip(self.principal, features, strict=True))
        latents = tuple(encoded) if wants == "latents" else ()
        return Batch(batch.lr_NCHW, batch.hr_NCHW, image, latents)


@pytest.mark.parametrize("method", ["mipkd", "feature_prior", "logits"])
def test_a_teacher_that_is_kept_teaches_as_one_that_runs(
    method: str, small: Callable[[str], SRNet]
) -> None:
    config = DistillConfig(method=method, steps=4, patch=8, device="cpu", precision="fp32")
    student, teacher = again(small)
    kept = Kept(teacher.eval(), pair_positions(student, teacher)[1], 5)
    curves = []
    for patches in (Noise(), kept):
        learner = Learner(config, *again(small), principal=kept.principal)
        curves.append([learner.advance(patches) for _ in range(4)])
        assert all(mixer.principal.width == 5 for mixer in mixers(learner))
    for live, same in zip(*curves, strict=True):
        assert same == pytest.approx(live, rel=2e-3)
    batch = kept.batch(0, learner.forward.objective.wants_at(0))
    learner.forward.prepare(0)
    assert (
        learner.forward.run_nets(batch, (0, 3)).teacher_features == []
    )  # its plain pass did not run


def mixers(learner: Learner) -> list[Any]:
    return [m for helper in learner.helpers.values() for m in cast("Mixers", helper).each()]


def again(small: Callable[[str], SRNet]) -> tuple[SRNet, SRNet]:
    torch.manual_seed(0)
    return small("edsr"), small("rcan")
