"""Methods as a training meets them: named in the settings, and several losses in one step."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch

from mipkd.archs.base import SRNet
from mipkd.distill.batch import Batch
from mipkd.distill.learner import Learner
from mipkd.distill.settings import DistillConfig, Method
from mipkd.losses.base import TeacherPass

RIVALS = ("fitnet", "at", "rkd", "fakd", "crosskd")


class Noise:
    """Patches of noise."""

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        chance = torch.Generator().manual_seed(step)
        return Batch(*(torch.rand(3, 3, side, side, generator=chance) for side in (8, 16)))


def stepped(config: DistillConfig, student: SRNet, teacher: SRNet) -> dict[str, float]:
    learner = Learner(config, student, teacher)
    learner.advance(Noise())
    return learner.advance(Noise())


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_is_logits_and_its_own_loss(method: Method) -> None:
    chosen = tuple(DistillConfig(method=method).chosen())
    # CrossKD matches the teacher's image through the teacher's blocks instead.
    base = ("pixel",) if method == "crosskd" else ("pixel", "logits")
    assert chosen == (*base, method)


@pytest.mark.parametrize("method", [*get_args(Method), None])
def test_upcycled_data_joins_any_method(
    method: Method | None, small: Callable[[str], SRNet]
) -> None:
    names = [*DistillConfig(method=method).chosen(), "dukd"]
    entries = tuple({"name": name} for name in names)
    config = DistillConfig(losses=entries, patch=8, device="cpu", precision="fp32")
    terms = stepped(config, small("edsr"), small("rcan"))
    assert {"pixel", "zoom_in", "zoom_out"} <= set(terms)
    assert terms == stepped(config, *again(small))


def again(small: Callable[[str], SRNet]) -> tuple[SRNet, SRNet]:
    torch.manual_seed(0)
    return small("edsr"), small("rcan")
