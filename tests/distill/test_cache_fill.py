"""What a teacher makes of whole photos: kept exactly, in tiles, resumed, and cut as photos are."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mipkd.archs import edsr, swinir
from mipkd.archs.base import SRNet
from mipkd.core.errors import StageError
from mipkd.core.images import write_png
from mipkd.core.photos import open_photos
from mipkd.core.records import Directions, Photos, TeacherCache
from mipkd.distill.cache_fill import cache_bytes, count_lr_pixels, fill_cache
from mipkd.distill.cache_store import link_images
from mipkd.distill.data import prepare_photos
from mipkd.distill.latent_directions import find_directions, read_directions
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.distill.settings import DistillConfig
from mipkd.distill.tiled_forward import run_tiled
from mipkd.distill.train_step import Learner
from mipkd.losses._principal import PrincipalDirections

SIZES = [(81, 67), (64, 96), (60, 60)]
POSITIONS = (0, 2)


def teacher() -> SRNet:
    torch.manual_seed(0)
    return edsr.EDSR(edsr.Hyper(2, channels=12, blocks=2)).eval()


def photos_in(folder: Path, count: int = len(SIZES)) -> Photos:
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (*SIZES[index % len(SIZES)], 3), dtype=np.uint8)
        write_png(folder / "photos" / f"{index}.png", pixels)
    (folder / "store").mkdir()
    return prepare_photos(folder / "photos", scale=2, patch=16, out=folder / "store")


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return photos_in(tmp_path)


def filled(photos: Photos, out: Path, found: Directions | None) -> TeacherCache:
    out.mkdir(exist_ok=True)
    fill_cache(teacher(), photos, found, out)
    return TeacherCache(out, "teacher", photos.sha256, found, 0, 0.0)


@pytest.fixture
def cache(photos: Photos, tmp_path: Path) -> TeacherCache:
    found = find_directions(teacher(), photos, POSITIONS, 8, tmp_path)
    return filled(photos, tmp_path / "cache", found)


def turned(patch_CHW: Tensor, turn: int) -> Tensor:
    if turn & 1:
        patch_CHW = patch_CHW.flip(1)
    if turn & 2:
        patch_CHW = patch_CHW.flip(2)
    return patch_CHW.transpose(1, 2) if turn & 4 else patch_CHW


@torch.no_grad()
def test_patches_are_the_whole_photos_at_their_place_in_all_eight_turns(
    photos: Photos, cache: TeacherCache
) -> None:
    sampler = PatchSampler(photos, patch=16, batch=48, seed=3, cache=cache)
    batch, plain = sampler.batch(0, "latents"), PatchSampler(photos, patch=16, batch=48, seed=3)
    draws = sampler.draw(0)
    assert set(draws[:, 3]) == set(range(8))
    assert torch.equal(batch.hr_NCHW, plain.batch(0).hr_NCHW)
    assert batch.teacher_image is not None
    assert cache.directions is not None
    encoders = read_directions(cache.directions)
    for row, (index, top, left, turn) in enumerate(draws):
        lr_HWC = torch.from_numpy(open_photos(photos)[index].lr_HWC.copy())
        lr_NCHW = lr_HWC.permute(2, 0, 1)[None] / 255
        image, features = teacher().forward_with_taps(lr_NCHW, POSITIONS)
        whole = [image, *(e.encode(f) for e, f in zip(encoders, features, strict=True))]
        kept = [batch.teacher_image, *batch.teacher_latents]
        for theirs, mine, scale in zip(whole, kept, (2, 1, 1), strict=True):
            place = np.s_[:, top * scale : (top + 16) * scale, left * scale : (left + 16) * scale]
            # Half of a 16-bit float's last bit, and float32's own.
            expected = turned(theirs[0][place], turn)
            torch.testing.assert_close(mine[row], expected, rtol=2**-11, atol=1e-4)


def test_it_gives_what_is_wanted_whole_or_not_at_all(
    photos: Photos, cache: TeacherCache, tmp_path: Path
) -> None:
    both = PatchSampler(photos, patch=16, batch=2, seed=0, cache=cache)
    counts = {"none": 2, "image": 3, "latents": 5, "features": 2}
    assert {wants: len(both.batch(0, wants).tensors()) for wants in counts} == counts
    (tmp_path / "images").mkdir()
    link_images(cache, tmp_path / "images")
    images = replace(cache, folder=tmp_path / "images", directions=None)
    alone = PatchSampler(photos, patch=16, batch=2, seed=0, cache=images)
    counts["latents"] = 2  # the teacher has to run: its image would be of no use
    assert {wants: len(alone.batch(0, wants).tensors()) for wants in counts} == counts
    mine, theirs = (one.batch(0, "image").teacher_image for one in (alone, both))
    assert mine is not None
    assert theirs is not None
    assert torch.equal(mine, theirs)
    assert (tmp_path / "images/image.f16").samefile(cache.folder / "image.f16")


def test_its_size_is_known_before(photos: Photos, cache: TeacherCache) -> None:
    size = sum(file.stat().st_size for file in cache.folder.glob("*.f16"))
    assert cache_bytes(count_lr_pixels(photos), 2, cache.directions) == size


@pytest.mark.parametrize(
    ("net", "side"),
    [
        (lambda: edsr.EDSR(edsr.Hyper(2, channels=8, blocks=2)), 100),
        # Its windows look at each other by shifts: two layers reach no further than a margin.
        (lambda: swinir.SwinIR(swinir.Hyper(2, channels=6, groups=1, layers=2, heads=2)), 128),
    ],
)
def test_tiles_are_the_whole_for_a_net_that_looks_no_further_than_their_margin(
    net: Callable[[], SRNet], side: int
) -> None:
    torch.manual_seed(0)
    made, rng = net().eval(), np.random.default_rng(0)
    lr_HWC = rng.integers(0, 256, (150, 203, 3), dtype=np.uint8)
    lr_NCHW = torch.from_numpy(lr_HWC).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected, (features,) = made.forward_padded(lr_NCHW, (0,))
        channels = features.shape[1]
        encoder = PrincipalDirections(torch.zeros(channels), torch.eye(channels))
        found = run_tiled(made, lr_HWC, (0,), [encoder], side=side)
    assert found.latents_KHWL is not None
    image, latents = (torch.from_numpy(a).float() for a in found.arrays)
    torch.testing.assert_close(image, expected[0].permute(1, 2, 0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(latents[0], features[0].permute(1, 2, 0), rtol=1e-3, atol=1e-2)


def killed_in(folder: Path, whole: TeacherCache, photos: int) -> Path:
    """A store whose writer was killed within the photo after so many."""
    folder.mkdir()
    lines = (whole.folder / "index.jsonl").read_text().splitlines(keepends=True)
    (folder / "index.jsonl").write_text("".join(lines[:photos]) + lines[photos][:9])
    for kind in ("image", "latents"):
        end = json.loads(lines[photos])[kind]["at"]
        stored = (whole.folder / f"{kind}.f16").read_bytes()
        (folder / f"{kind}.f16").write_bytes(stored[: end + (50 if kind == "image" else 0)])
    return folder


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_torn_store_goes_on_to_the_same_bytes(
    photos: Photos,
    cache: TeacherCache,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    count: int,
) -> None:
    torn = killed_in(tmp_path / "torn", cache, count)
    with caplog.at_level(logging.INFO):
        filled(photos, torn, cache.directions)
    assert f"{3 - count} of 3 photos" in caplog.text  # only those that are not whole
    for name in ("image.f16", "latents.f16", "index.jsonl"):
        assert (torn / name).read_bytes() == (cache.folder / name).read_bytes()


def test_an_index_ahead_of_its_pixels_is_not_believed(
    photos: Photos, cache: TeacherCache, tmp_path: Path
) -> None:
    torn = killed_in(tmp_path / "torn", cache, 2)
    stored = (torn / "latents.f16").read_bytes()
    (torn / "latents.f16").write_bytes(stored[:-1])
    filled(photos, torn, cache.directions)
    for name in ("image.f16", "latents.f16", "index.jsonl"):
        assert (torn / name).read_bytes() == (cache.folder / name).read_bytes()


def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    photos = photos_in(tmp_path, count=30)
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path; import test_cache_fill as t\n"
        "from mipkd.core.records import Photos\n"
        "photos = Photos(Path(sys.argv[2]), '', '', scale=2, count=30)\n"
        "t.filled(photos, Path(sys.argv[3]), None)"
    )
    words = [str(Path(__file__).parent), str(photos.folder), str(tmp_path / "killed")]
    index, root = tmp_path / "killed/index.jsonl", Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code, *words], cwd=root) as process:
        while not (index.exists() and index.read_bytes().count(b"\n") > 1):
            assert process.poll() in (None, 0), "ended before it could be killed"
            time.sleep(0.001)
        process.kill()
    filled(photos, tmp_path / "killed", None)
    whole = filled(photos, tmp_path / "whole", None)
    for name in ("image.f16", "index.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole.folder / name).read_bytes()


def test_values_that_16_bits_cannot_hold_are_refused(photos: Photos, tmp_path: Path) -> None:
    wild = teacher()
    with torch.no_grad():
        for weight in wild.parameters():
            weight.mul_(1e3)
    with pytest.raises(StageError, match="is not finite in 16 bits"):
        fill_cache(wild, photos, None, tmp_path)


@pytest.mark.parametrize(("losses", "runs"), [((), 0), (({"name": "dukd"},), 2)])
def test_the_teacher_rests_where_its_images_are_kept(
    photos: Photos, cache: TeacherCache, losses: tuple[dict[str, str], ...], runs: int
) -> None:
    losses = ({"name": "pixel"}, {"name": "logits"}, *losses)
    config = DistillConfig(losses=losses, batch=2, patch=16, steps=4, precision="fp32")
    curves = []
    for kept in (cache, None):
        taught, calls = teacher(), []
        taught.blocks[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        learner = Learner(config, edsr.EDSR(edsr.Hyper(2, channels=8, blocks=1)), taught)
        sampler = PatchSampler(photos, patch=16, batch=2, seed=0, cache=kept)
        curves.append([learner.advance(sampler)["logits"] for _ in range(4)])
        assert len(calls) == 4 * (runs if kept else runs + 1)
    # Of one patch: what lies beyond it is seen by a teacher of whole photos alone.
    assert curves[0] == pytest.approx(curves[1], rel=0.2)
    assert curves[0] != curves[1]


def test_directions_are_found_from_the_photos_and_read_again(
    photos: Photos, tmp_path: Path
) -> None:
    found = find_directions(teacher(), photos, POSITIONS, 8, tmp_path)
    assert found.error > 0.1
    first, second = read_directions(found)
    assert first.directions_CL.shape == second.directions_CL.shape == (12, 8)
    (tmp_path / "again").mkdir()
    again = find_directions(teacher(), photos, POSITIONS, 8, tmp_path / "again")
    assert again.file.read_bytes() == found.file.read_bytes()
    chosen = find_directions(teacher(), photos, POSITIONS, None, tmp_path)
    assert chosen.width == find_directions(teacher(), photos, POSITIONS, 99, tmp_path).width == 12
    assert chosen.error < 1e-5


def test_images_beyond_0_and_1_are_kept_as_they_are(photos: Photos) -> None:
    dark = edsr.EDSR(edsr.Hyper(2, channels=12, blocks=2)).eval()
    torch.nn.init.constant_(dark.last.bias, -200)  # of 255
    assert run_tiled(dark, open_photos(photos)[0].lr_HWC).image_HWC.max() < 0
