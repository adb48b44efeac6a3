"""What a teacher that is not ours can teach; what it cannot is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from mipkd.archs import edsr
from mipkd.archs._hooked import BlockSequence, HookedNet
from mipkd.core import plugins
from mipkd.core.errors import UsageError
from mipkd.distill.batch import Batch
from mipkd.distill.settings import DistillConfig
from mipkd.distill.supported_losses import build_supported_losses, list_supported
from mipkd.distill.train_step import Learner
from mipkd.losses.base import TeacherPass

SERVED = ("at", "dukd", "fakd", "fitnet", "logits", "mixture_of_priors", "pixel", "rkd")


def student() -> edsr.EDSR:
    torch.manual_seed(0)
    return edsr.EDSR(edsr.Hyper(2, channels=8, blocks=2))


def teacher(*, blocks: bool = True) -> HookedNet:
    torch.manual_seed(1)
    body = [nn.Conv2d(12, 12, 3, padding=1) for _ in range(4)]
    first, last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1)
    net = nn.Sequential(first, nn.Sequential(*body), last, nn.PixelShuffle(2))
    names = tuple(f"1.{index}" for index in range(4)) if blocks else ()
    return HookedNet(net, BlockSequence(names, 12 if blocks else 0), scale=2)


class Noise:
    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        chance = torch.Generator().manual_seed(step)
        return Batch(*(torch.rand(3, 3, side, side, generator=chance) for side in (8, 16)))


def config(**settings: Any) -> DistillConfig:
    fixed = {"steps": 2, "patch": 8, "batch": 3, "device": "cpu", "precision": "fp32"}
    return DistillConfig(**fixed, **settings)


@pytest.mark.parametrize("blocks", [True, False])
def test_by_default_it_teaches_by_its_image(blocks: bool) -> None:
    learner = Learner(config(), student(), teacher(blocks=blocks))
    assert set(learner.advance(Noise())) == {"pixel", "logits"}


@pytest.mark.parametrize("loss", SERVED)
def test_each_loss_on_features_or_images_teaches_as_from_any_net(loss: str) -> None:
    entry: dict[str, Any] = {"name": loss}
    if loss == "mixture_of_priors":
        entry |= {"block_weight": 0, "until": 1}
    pupil = student()
    before = {k: v.clone() for k, v in pupil.state_dict().items()}
    net = teacher()
    frozen = {k: v.clone() for k, v in net.state_dict().items()}
    Learner(config(losses=(entry,)), pupil, net).advance(Noise())
    assert any(not torch.equal(v, before[k]) for k, v in pupil.state_dict().items())
    assert all(torch.equal(v, frozen[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("settings", [{"method": "mipkd"}, {"losses": ({"name": "crosskd"},)}])
def test_a_loss_that_was_asked_for_is_refused_and_the_possible_ones_named(
    settings: dict[str, Any],
) -> None:
    message = "needs more than this teacher offers: the teacher's blocks give"
    with pytest.raises(UsageError, match=message) as caught:
        build_supported_losses(config(**settings), teacher())
    for name in SERVED:
        assert name in caught.value.hint
    assert "crosskd" not in caught.value.hint
    assert "mixture_of_priors with block_weight=0" in caught.value.hint


def test_without_blocks_there_are_no_losses_on_features() -> None:
    assert list_supported(teacher(blocks=False)) == ["dukd", "logits", "pixel", "psnr_drop"]
    with pytest.raises(UsageError, match=r"fitnet needs more than this teacher.*identify\.blocks"):
        build_supported_losses(config(method="fitnet"), teacher(blocks=False))


def test_our_own_teachers_serve_every_loss() -> None:
    assert list_supported(student()) == list(plugins.names("mipkd.losses"))


def test_features_of_another_size_name_the_block() -> None:
    pool = nn.AvgPool2d(2)
    body = nn.Sequential(nn.Conv2d(3, 12, 1), pool, nn.PixelShuffle(2))
    net = HookedNet(body, BlockSequence(("1",), 12), scale=2)
    with pytest.raises(UsageError, match=r"at LR 8x8 the teacher's 1 gives \(1, 12, 4, 4\)"):
        net.forward_with_taps(torch.rand(1, 3, 8, 8), (0,))
