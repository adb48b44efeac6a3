"""The baseline losses by hand: at each of two positions, which all but CrossKD sum."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mipkd.archs.base import SRNet
from mipkd.core.errors import UsageError
from mipkd.losses import at, crosskd, dukd, fakd, fitnet, rkd
from mipkd.losses.base import Loss, Pass, Positions

Look = Callable[..., Pass]


class Scaled(SRNet):
    """Blocks that multiply, then the nearest pixels plus a constant; x2."""

    def __init__(self, *factors: float, plus: float = 0.0) -> None:
        super().__init__()
        self.scale, self.width, self.plus = 2, 1, plus
        self.blocks = nn.ModuleList(Times(factor) for factor in factors)

    def head(self, lr_NCHW: Tensor) -> Tensor:
        return lr_NCHW

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        return F.interpolate(features_NCHW, scale_factor=2) + self.plus


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW * self.factor


def seen_with(student: Any, teacher: Any, *, images: int = 1) -> Pass:
    """What a step knows that has these features at each of two positions."""
    lr = torch.ones(images, 1, 1, 1)
    seen = Pass(lr, torch.zeros(images, 1, 2, 2), Scaled(1), torch.ones(images, 1, 2, 2))
    seen.student_features = [torch.as_tensor(student)] * 2
    seen.teacher_features = [torch.as_tensor(teacher)] * 2
    seen.positions = Positions((0, 1), (0, 1))
    return seen


def values(loss: Loss, seen: Pass, helper: nn.Module | None = None) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in loss(seen, helper).items()}


def places(*vectors: tuple[float, ...]) -> Tensor:
    """One image with a row of places, each with its channels."""
    return torch.tensor(vectors).T[None, :, None]


def test_fitnet_regresses_to_the_teachers_width() -> None:
    seen = seen_with(places((2.0,)), places((5.0, 7.0)))
    helper = fitnet.Regressors(2, 1, 2)
    for regressor in helper.each():
        nn.init.ones_(regressor.weight)
        nn.init.constant_(regressor.bias, 1.0)  # type: ignore[arg-type]
    plain = fitnet.LOSS(normalise="never")
    assert values(plain, seen, helper) == {"hint": 2 * (2**2 + 4**2) / 2}
    in_units = fitnet.LOSS(normalise="always")  # of |F_T| = 6
    assert values(in_units, seen, helper) == pytest.approx({"hint": 2 * 10 / 36})


def test_attention_maps_have_length_one_and_no_channels() -> None:
    student = places((3**0.5, 0.0, 0.0), (0.0, 2.0, 0.0))  # energies 3, 4
    teacher = places((20.0,), (300**0.5,))  # energies 400, 300
    assert values(at.LOSS(), seen_with(student, teacher)) == pytest.approx({"attention": 2 * 0.2})


def test_rkd_compares_distances_and_angles() -> None:
    """A line 0, 1, 2 against a triangle of sides 3, 4, 5."""
    line = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).view(3, 2, 1, 1)
    # Over their means: .75, 1.5, .75 and .75, 1, 1.25. Cosines: 1, -1, 1 and 0, .6, .8.
    distance = (0 + 0.5 * 0.5**2 + 0.5 * 0.5**2) / 3
    angle = (0.5 + (1.6 - 0.5) + 0.5 * 0.2**2) / 3
    found = values(rkd.LOSS(), seen_with(line, triangle, images=3))
    assert found == pytest.approx(
        {"distance": 2 * 25 * distance, "angle": 2 * 50 * angle}, rel=1e-3
    )


def test_rkd_does_not_see_shift_or_scale() -> None:
    features = torch.rand(4, 5, 6, 6)
    moved = rkd.relations(255 * features + 1e4)
    torch.testing.assert_close(moved, rkd.relations(features), rtol=0, atol=2e-4)


def test_rkd_bears_equal_images() -> None:
    student = torch.rand(1, 5, 6, 6).repeat(3, 1, 1, 1).requires_grad_()
    seen = seen_with(student, torch.rand(3, 2, 6, 6), images=3)
    torch.stack(list(rkd.LOSS()(seen, None).values())).sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_rkd_needs_three_images() -> None:
    two = torch.rand(2, 1, 1, 1)
    with pytest.raises(UsageError, match="one of 2 has no relations") as caught:
        rkd.LOSS()(seen_with(two, two, images=2), None)
    assert "distill.batch" in caught.value.hint


def test_fakd_compares_the_cosines_between_places() -> None:
    alike, square = places((1.0, 0.0), (7.0, 0.0)), places((0.0, 2.0, 0.0), (3.0, 0.0, 0.0))
    # Affinities: all 1, against the unit matrix.
    assert values(fakd.LOSS(), seen_with(alike, square)) == pytest.approx(
        {"affinity": 2 * 10 * 0.5}
    )


def test_fakd_in_parts_is_the_whole() -> None:
    found = []
    for at_once in (1, 100, 10**6):
        student = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
        teacher = student.roll(1, 3).repeat(1, 2, 1, 1) + student.repeat(1, 2, 1, 1).square()
        student.requires_grad_()
        fakd.affinity_distance(student, teacher, at_once=at_once).backward()  # type: ignore[no-untyped-call]
        found.append(student.grad)
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def test_crosskd_sends_the_students_features_through_the_teachers_rest() -> None:
    """F_S = 2 through the teacher's last block, which trebles, or none; against its image 9."""
    seen = seen_with(places((2.0,)), places((0.0,)))
    seen.teacher, seen.teacher_image = Scaled(1, 3), torch.full((1, 1, 2, 2), 9.0)
    assert values(crosskd.LOSS(), seen) == {"cross": (3 + 7) / 2}
    widened = nn.ModuleList([Times(4), Times(5)])
    assert values(crosskd.LOSS(), seen, widened) == {"cross": (15 + 1) / 2}


def test_crosskd_widens_only_where_it_must() -> None:
    narrow, wide = Scaled(1), Scaled(1)
    wide.width = 4
    assert crosskd.LOSS().helper(narrow, narrow, Positions((0,), (0,))) is None
    assert crosskd.LOSS().helper(narrow, wide, Positions((0,), (0,))) is not None


@pytest.mark.parametrize("loss", [fitnet.LOSS(), at.LOSS(), fakd.LOSS(), crosskd.LOSS()])
def test_features_of_two_resolutions_are_refused(loss: Loss) -> None:
    seen = seen_with(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 2))
    seen.teacher_image = torch.ones(1, 1, 2, 2)
    helper = loss.helper(Scaled(1), Scaled(1), seen.positions)
    with pytest.raises(UsageError, match="the student's are 4x4, the teacher's 2x4"):
        loss(seen, helper)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_dukd_compares_the_nets_on_the_plain_images(chance: float, look: Look) -> None:
    """Nets that every change passes through: only the constant between them is left."""
    student, teacher = Scaled(1, plus=0.25), Scaled(1)
    for seed in range(5):
        seen = look(student, teacher, Positions((), ()), seed)
        found = values(dukd.LOSS(chance=chance), seen)
        assert found == pytest.approx({"zoom_in": 0.25, "zoom_out": 0.25})


class Leaning(Scaled):
    """Brighter to the right, whatever it is shown."""

    def tail(self, features_NCHW: Tensor, shallow_NCHW: Tensor, lr_NCHW: Tensor) -> Tensor:
        image = super().tail(features_NCHW, shallow_NCHW, lr_NCHW)
        return image + torch.linspace(0, 1, image.shape[-1])


def test_dukd_asks_for_the_same_label_after_a_change(look: Look) -> None:
    net = Leaning(1)
    seen = look(net, net, Positions((), ()))
    assert values(dukd.LOSS(chance=0), seen) == {"zoom_in": 0.0, "zoom_out": 0.0}
    assert all(value > 0.1 for value in values(dukd.LOSS(chance=1), seen).values())


@pytest.mark.parametrize("taken", list(product([False, True], repeat=4)))
def test_dukd_undoes_every_composition(taken: tuple[bool, ...]) -> None:
    image = torch.rand(2, 3, 4, 6)
    changes = [c for c, take in zip(dukd.CHANGES, taken, strict=True) if take]
    torch.testing.assert_close(
        dukd.undo_changes(dukd.apply_changes(image, changes), changes), image
    )


def test_dukd_zooms_in_anywhere_and_out_to_a_smaller_lr(look: Look) -> None:
    corners = set()
    for seed in range(20):
        seen = look(Scaled(1), Scaled(1), Positions((), ()), seed)
        seen.truth_NCHW = torch.arange(16.0 * 16).view(1, 1, 16, 16)
        crop = dukd.zoom_in(seen)
        assert crop.shape == (1, 1, 8, 8)
        corners.add(float(crop[0, 0, 0, 0]))
    assert len(corners) > 10
    seen.lr_NCHW = torch.full((1, 3, 8, 8), 0.5)
    torch.testing.assert_close(dukd.zoom_out(seen), torch.full((1, 3, 4, 4), 0.5))
