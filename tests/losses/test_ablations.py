"""MiPKD with parts left out or changed, as settings of the one loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mipkd.archs.base import SRNet
from mipkd.core.errors import UsageError
from mipkd.distill.settings import DistillConfig
from mipkd.losses._feature_mixer import FeatureMixer
from mipkd.losses.base import Pass, Positions
from mipkd.losses.mixture_of_priors import MixtureOfPriors

TWO = Positions((0, 1), (1, 3))
PCA = {"feature", "block"}
WHOLE = {*PCA, "autoencoder"}


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({}, PCA),
        ({"mixed_path": "chain"}, PCA),
        ({"mask_ratio": 1, "block_weight": 0}, {"feature"}),
        ({"feature_weight": 0}, {"block"}),
        ({"latent_width": 3}, PCA),
        ({"encoder": "cnn"}, WHOLE),
        ({"encoder": "cnn", "mixed_path": "chain"}, WHOLE),
        ({"encoder": "mlp"}, WHOLE),
        ({"encoder": "cnn", "autoencoder_weight": 0}, PCA),
        ({"encoder": "cnn", "block_weight": 0}, {"feature", "autoencoder"}),
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
    loss, seen = MixtureOfPriors(**settings), look(student, teacher, TWO)
    helper = loss.helper(student, teacher, TWO)
    loss.start(seen, helper)
    found = loss(seen, helper)
    torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert set(found) == terms
    assert all(float(p.grad.abs().sum()) > 0 for p in student.blocks.parameters())  # type: ignore[union-attr]


def test_a_mixture_of_nothing_is_refused() -> None:
    entry = {"name": "mixture_of_priors", "feature_weight": 0, "block_weight": 0}
    with pytest.raises(UsageError, match=r"mixture_of_priors: .*must be more than 0"):
        DistillConfig(losses=(entry,)).build_losses()


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
