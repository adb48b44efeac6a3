"""What every loss in the folder holds to."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from mipkd.archs.base import SRNet, pair_positions
from mipkd.core import plugins
from mipkd.losses.base import Loss, Pass, Positions

NAMES = plugins.names("mipkd.losses")
FAMILIES = plugins.names("mipkd.archs")
POSITIONS = Positions((0, 1), (1, 3))


def made(name: str, **settings: float) -> Loss:
    kind: type[Loss] = plugins.load("mipkd.losses", name, "LOSS")
    return kind(**settings)


@pytest.fixture(name="nets")
def _nets(tiny: Callable[[int, int], SRNet]) -> tuple[SRNet, SRNet]:
    return tiny(4, 2), tiny(6, 4).requires_grad_(False)


def terms_of(loss: Loss, nets: tuple[SRNet, SRNet], seen: Pass) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return loss(seen, loss.helper(*nets, POSITIONS))


def gradients(net: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None)


def test_the_losses_of_this_version() -> None:
    mixers, baselines = {"mixture_of_priors"}, {"fitnet", "at", "rkd", "fakd", "crosskd", "dukd"}
    assert {"pixel", "logits"} | mixers | baselines <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_has_named_scalar_terms(
    name: str, nets: tuple[SRNet, SRNet], look: Callable[..., Pass]
) -> None:
    terms = terms_of(made(name), nets, look(*nets, POSITIONS))
    assert terms
    assert all(term.shape == () and term.isfinite() for term in terms.values())


@pytest.mark.parametrize("name", NAMES)
def test_teaches_the_student_and_leaves_the_teacher(
    name: str, nets: tuple[SRNet, SRNet], look: Callable[..., Pass]
) -> None:
    # Sums of detached terms are a known fault of released code: no gradient, no complaint.
    for term in terms_of(made(name), nets, look(*nets, POSITIONS)):
        nets[0].zero_grad()
        terms_of(made(name), nets, look(*nets, POSITIONS))[term].backward()
        # The auto-encoder's term is of the teacher alone: it teaches the helpers.
        assert (gradients(nets[0]) > 0) == (term != "autoencoder"), term
        assert gradients(nets[1]) == 0


# Each loss has each family as student and as teacher, in other pairs than the next loss.
PAIRS = [
    (name, family, FAMILIES[(place + shift) % len(FAMILIES)])
    for shift, name in enumerate(NAMES)
    for place, family in enumerate(FAMILIES)
]


@pytest.mark.parametrize(("name", "student_family", "teacher_family"), PAIRS)
def test_teaches_a_student_of_any_family_from_a_teacher_of_any(
    name: str,
    student_family: str,
    teacher_family: str,
    small: Callable[[str], SRNet],
    look: Callable[..., Pass],
) -> None:
    student, teacher = small(student_family), small(teacher_family).eval().requires_grad_(False)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    positions = Positions(*pair_positions(student, teacher, 2))
    loss = made(name)
    terms = loss(look(student, teacher, positions), loss.helper(student, teacher, positions))
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert gradients(student) > 0
    assert gradients(teacher) == 0
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_weight_scales_every_term(
    name: str, nets: tuple[SRNet, SRNet], look: Callable[..., Pass]
) -> None:
    one = terms_of(made(name), nets, look(*nets, POSITIONS))
    three = terms_of(made(name, weight=3.0), nets, look(*nets, POSITIONS))
    assert {k: v.item() for k, v in three.items()} == pytest.approx(
        {k: 3 * v.item() for k, v in one.items()}
    )


@pytest.mark.parametrize("name", NAMES)
def test_takes_its_chance_from_the_pass_alone(
    name: str, nets: tuple[SRNet, SRNet], look: Callable[..., Pass]
) -> None:
    loss = made(name)
    results = []
    for seed in (1, 2):
        torch.manual_seed(1)
        seen, helper = look(*nets, POSITIONS), loss.helper(*nets, POSITIONS)
        torch.manual_seed(seed)
        random.seed(seed)
        results.append(loss(seen, helper))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", NAMES)
def test_runs_under_autocast(
    name: str, nets: tuple[SRNet, SRNet], look: Callable[..., Pass]
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(made(name), nets, look(*nets, POSITIONS))
        sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert gradients(nets[0]) > 0
