"""Patches near the device are those that the plain sampler gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mipkd.core.images import write_png
from mipkd.distill.data import PatchSampler, prepare_photos
from mipkd.distill.resident import ReadAhead, ResidentSampler, near


@pytest.fixture(params=[2, 3])
def sampler(request: pytest.FixtureRequest, tmp_path: Path) -> PatchSampler:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate([(81, 67), (64, 96), (60, 60)]):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        write_png(tmp_path / "photos" / f"{index}.png", pixels)
    (tmp_path / "store").mkdir()
    store = prepare_photos(
        tmp_path / "photos", scale=request.param, patch=16, out=tmp_path / "store"
    )
    return PatchSampler(store, patch=16, batch=24, seed=3)  # all eight turns


@pytest.mark.parametrize("kind", ["resident", "ahead"])
def test_patches_are_the_plain_samplers(sampler: PatchSampler, kind: str) -> None:
    device = torch.device("cpu")
    other = ResidentSampler(sampler, device) if kind == "resident" else ReadAhead(sampler)
    for step in (0, 1, 5, 2):
        for mine, theirs in zip(
            other.batch(step).tensors(), sampler.batch(step).tensors(), strict=True
        ):
            assert mine.shape == theirs.shape
            assert torch.equal(mine, theirs)


def test_a_cpu_keeps_the_plain_sampler(sampler: PatchSampler) -> None:
    assert near(sampler, torch.device("cpu")) is sampler


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_holds_photos_that_fit(sampler: PatchSampler) -> None:
    device = torch.device("cuda")
    for mine, theirs in zip(
        near(sampler, device).batch(0).tensors(), sampler.batch(0).tensors(), strict=True
    ):
        assert mine.device.type == "cuda"
        assert torch.allclose(mine.cpu(), theirs, atol=1e-6)
