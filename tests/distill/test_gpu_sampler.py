"""Patches near the device are those that the plain sampler gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.images import write_png
from mipkd.core.records import TeacherCache
from mipkd.distill.cache_fill import fill_cache
from mipkd.distill.data import prepare_photos
from mipkd.distill.gpu_sampler import GpuSampler, PrefetchSampler, choose_sampler
from mipkd.distill.latent_directions import find_directions
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.losses.base import PASSES


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
    torch.manual_seed(0)
    teacher = edsr.EDSR(edsr.Hyper(request.param, channels=8, blocks=2))
    found = find_directions(teacher, store, (0, 2), 4, tmp_path)
    fill_cache(teacher, store, found, store.folder)
    cache = TeacherCache(store.folder, "teacher", store.sha256, found, 0, 0.0)
    return PatchSampler(store, patch=16, batch=24, seed=3, cache=cache)  # all eight turns


@pytest.mark.parametrize("kind", ["resident", "ahead"])
def test_patches_are_the_plain_samplers(sampler: PatchSampler, kind: str) -> None:
    device = torch.device("cpu")
    other = GpuSampler(sampler, device) if kind == "resident" else PrefetchSampler(sampler)
    for wants in PASSES:
        for step in (0, 1, 5, 2):
            for mine, theirs in zip(
                other.batch(step, wants).tensors(),
                sampler.batch(step, wants).tensors(),
                strict=True,
            ):
                assert mine.shape == theirs.shape
                assert torch.equal(mine, theirs)


def test_a_cpu_keeps_the_plain_sampler(sampler: PatchSampler) -> None:
    assert choose_sampler(sampler, torch.device("cpu")) is sampler


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_holds_photos_that_fit(sampler: PatchSampler) -> None:
    device = torch.device("cuda")
    for mine, theirs in zip(
        choose_sampler(sampler, device).batch(0, "latents").tensors(),
        sampler.batch(0, "latents").tensors(),
        strict=True,
    ):
        assert mine.device.type == "cuda"
        assert torch.allclose(mine.cpu(), theirs, atol=1e-6)
