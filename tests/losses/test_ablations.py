"""MiPKD with parts left out or changed, as settings of the one loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mipkd.archs.base import SRNet, params
from mipkd.core.errors import UsageError
from mipkd.distill.settings import DistillConfig
from mipkd.losses._feature_mixer import FeatureMixer, grid_mask, masked
from mipkd.losses.base import Pass, Positions
from mipkd.losses.mixture_of_priors import MixtureOfPriors

TWO = Positions((0, 1), (1, 3))
WHOLE = {"feature", "autoencoder", "block"}


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({"shared_encoder": True}, WHOLE),
        ({"encoder": "mlp"}, WHOLE),
        ({"encoder": "mlp", "shared_encoder": True}, WHOLE),
        ({"mask": "grid", "mask_ratio": 0.25}, WHOLE),
        ({"mask": "none"}, WHOLE),
        ({"mixed_path": "branches"}, WHOLE),
        ({"autoencoder_weight": 0}, {"feature", "block"}),
        ({"block_weight": 0}, {"feature", "autoencoder"}),
        ({"feature_weight": 0}, {"block"}),
    ],
)
@pytest.mark.parametrize("teacher_width", [4, 6])
def test_every_ablation_teaches_the_student(
    settings: dict[str, Any],
    terms: set[str],
    teacher_width: int,
    tiny: Callable[[int, int], SRNet],
    look: Callable[..., Pass],
) -> None:
    student, teacher = tiny(4, 2), tiny(teacher_width, 4).requires_grad_(False)
    loss = MixtureOfPriors(**settings)
    found = loss(look(student, teacher, TWO), loss.helper(student, teacher, TWO))
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert set(found) == terms
    assert all(float(p.grad.abs().sum()) > 0 for p in student.blocks.parameters())  # type: ignore[union-attr]


def test_a_mixture_of_nothing_is_refused() -> None:
    entry = {"name": "mixture_of_priors", "feature_weight": 0, "block_weight": 0}
    with pytest.raises(UsageError, match=r"mixture_of_priors: .*must be more than 0"):
        DistillConfig(losses=(entry,)).chosen()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_grid_has_its_share_and_no_chance(share: float) -> None:
    mask = grid_mask(torch.empty(2, 8, 16, 16), student_share=share)
    assert float(mask.mean()) == share
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mask[0], mask[1])
    for dim in (1, 2, 3):
        assert torch.equal(mask, mask.roll(1, dim)) == (share in (0.0, 1.0))


def test_the_grid_of_a_half_is_a_chequerboard() -> None:
    board = grid_mask(torch.empty(1, 2, 2, 2), student_share=0.5)
    assert board[0].tolist() == [[[0, 1], [1, 0]], [[1, 0], [0, 1]]]


def test_without_a_mask_both_are_averaged() -> None:
    mask = masked("none", torch.empty(1, 2, 4, 4), student_share=0.25, generator=None)
    assert torch.equal(mask, torch.full((1, 2, 4, 4), 0.25))


def test_an_mlp_sees_one_place() -> None:
    reach = {}
    for encoder in ("cnn", "mlp"):
        mixer = FeatureMixer(3, 3, 8, encoder=encoder)  # type: ignore[arg-type]
        features = torch.rand(1, 3, 7, 7, requires_grad=True)
        mixer.encode_student(features)[0, :, 3, 3].sum().backward()
        assert features.grad is not None
        reach[encoder] = int((features.grad.abs().sum(1) > 0).sum())
    assert reach["mlp"] == 1
    assert reach["cnn"] > 9


def test_a_shared_encoder_is_one_but_for_the_first_layer_of_another_width() -> None:
    same, other = (FeatureMixer(4, width, 5, shared=True) for width in (4, 6))
    features = torch.rand(1, 4, 6, 6)
    assert torch.equal(same.encode_student(features), same.encode_teacher(features))
    encoders = nn.ModuleList([other.encode_student, other.encode_teacher])
    twice = sum(map(params, encoders)) - params(encoders)
    assert twice == 5 * 5 * 9 + 5
