"""Losses on frames without truth: what reads it is off, the others teach as before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mipkd.archs.base import SRNet, pair_positions
from mipkd.core.errors import UsageError
from mipkd.core.images import write_png
from mipkd.distill.batch import Batch
from mipkd.distill.data import ImageKind, prepare_photos
from mipkd.distill.gpu_sampler import GpuSampler
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.supported_losses import list_truth_terms
from mipkd.distill.train_step import Learner
from mipkd.losses.base import Pass, Positions, TeacherPass, load_loss, loss_names


class Frames:
    """Patches of noise that have no HR."""

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        chance = torch.Generator().manual_seed(step)
        return Batch(torch.rand(3, 3, 8, 8, generator=chance), None)


@pytest.mark.parametrize("name", [name for name in loss_names() if name != "pixel"])
def test_every_loss_of_a_teacher_teaches_without_truth(
    name: str, small: Callable[[str], SRNet]
) -> None:
    config = DistillConfig(
        losses=({"name": name, "until": 1.0},), steps=4, patch=8, device="cpu", precision="fp32"
    )
    learner = Learner(config, small("edsr"), small("edsr"), truth=False)
    before = [p.clone() for p in learner.student.parameters()]
    for _ in range(2):
        terms = learner.advance(Frames())
    assert not set(terms) & set(load_loss(name).truth_terms)
    assert sum(value for value in terms.values()) > 0
    moved = zip(before, learner.student.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)


def test_a_training_on_frames_goes_on_bit_for_bit(small: Callable[[str], SRNet]) -> None:
    config = DistillConfig(method="mipkd", steps=4, patch=8, device="cpu", precision="fp32")

    def learner() -> Learner:
        torch.manual_seed(1)
        return Learner(config, small("edsr"), small("edsr"), truth=False)

    whole, first, second = learner(), learner(), learner()
    for one in (whole, whole, whole, whole, first, first):
        one.advance(Frames())
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.advance(Frames())
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name]), name


def test_what_is_off_is_named() -> None:
    config = DistillConfig(losses=tuple({"name": n} for n in ("pixel", "logits", "dukd")))
    assert list_truth_terms(config) == ["pixel", "zoom_in of dukd"]
    assert list(config.build_losses(truth=False)) == ["logits", "dukd"]


@pytest.mark.parametrize(
    "asked", [{"method": "scratch"}, {"losses": ({"name": "pixel", "norm": "l2"},)}]
)
def test_what_learns_from_the_truth_alone_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="learns from the truth alone") as refused:
        DistillConfig.model_validate(asked).build_losses(truth=False)
    assert "distill.method=logits" in refused.value.hint


def test_a_loss_that_reads_the_truth_unsaid_ends_with_an_error(
    small: Callable[[str], SRNet], look: Callable[..., Pass]
) -> None:
    student, teacher = small("edsr"), small("edsr")
    seen = look(student, teacher, Positions(*pair_positions(student, teacher, 2)))
    with pytest.raises(UsageError, match="reads the truth"):
        _ = replace(seen, truth_NCHW=None).hr_NCHW


def test_frames_of_odd_sizes_give_the_same_patches_on_a_device(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, size in enumerate([(17, 31), (16, 16), (23, 19)]):
        write_png(tmp_path / f"{number}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (tmp_path / "store").mkdir()
    kind = ImageKind(lr_only=True)
    store = prepare_photos(tmp_path, scale=4, patch=16, out=tmp_path / "store", kind=kind)
    assert not store.has_truth
    assert store.count == 3
    sampler = PatchSampler(store, patch=16, batch=4, seed=0)
    mine, theirs = sampler.batch(3), GpuSampler(sampler, torch.device("cpu")).batch(3)
    assert mine.hr_NCHW is theirs.hr_NCHW is None
    assert torch.equal(mine.lr_NCHW, theirs.lr_NCHW)
    assert len(mine.split(2)[1].tensors()) == 1
