"""Principal directions of a teacher's features, from patches of the photos.

Shapes: N batch, C channels, L latent channels, H W low-res size, K positions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mipkd.archs.base import SRNet
from mipkd.core.photos import open_photos
from mipkd.core.records import Directions, Photos, TeacherCache
from mipkd.distill.files import hash_weights, write_state
from mipkd.distill.patch_sampler import PatchSampler
from mipkd.losses._principal import PrincipalDirections, choose_width, relative_error

log = logging.getLogger(__name__)

_PATCHES, _SIDE = 32, 48  # LR pixels a side, or the smallest photo's
_AT_ONCE = 8  # patches: a large teacher's features fill memory


def find_directions(
    net: SRNet, photos: Photos, positions: tuple[int, ...], width: int | None, out: Path
) -> Directions:
    """Fit the directions at `positions` and write them to `out`; `width` None: as many as needed.

    The patches are the same for any net: drawn from seed 0.
    """
    features_K = _run_features(net, _cut_patches(photos), positions)
    channels = features_K[0].shape[1]
    width = min(width, channels) if width else choose_width(features_K)
    found = [PrincipalDirections.fit(features, width) for features in features_K]
    error = max(map(relative_error, found, features_K))
    log.info("latents: %d of %d directions, features within %.1f %%", width, channels, 100 * error)
    file = out / "directions.safetensors"
    write_state(torch.nn.ModuleList(found).state_dict(), file, {})
    return Directions(file, hash_weights(file), positions, width, error)


def read_directions(directions: Directions) -> list[PrincipalDirections]:
    """The directions of each position."""
    state = load_file(directions.file)
    return [
        PrincipalDirections(state[f"{k}.mean_C"], state[f"{k}.directions_CL"])
        for k in range(len(directions.positions))
    ]


def read_cache_directions(cache: TeacherCache | None) -> list[PrincipalDirections]:
    """The directions of a cache's latents; none if it has no latents."""
    return read_directions(cache.directions) if cache and cache.directions else []


def _cut_patches(photos: Photos) -> Tensor:
    side = min(_SIDE, *(min(photo.lr_HWC.shape[:2]) for photo in open_photos(photos)))
    return PatchSampler(photos, patch=side, batch=_PATCHES, seed=0).batch(0).lr_NCHW


@torch.no_grad()
def _run_features(net: SRNet, lr_NCHW: Tensor, positions: tuple[int, ...]) -> Sequence[Tensor]:
    device = next(net.parameters()).device
    parts = [
        net.forward_padded(part.to(device), positions)[1] for part in torch.split(lr_NCHW, _AT_ONCE)
    ]
    return [torch.cat(part) for part in zip(*parts, strict=True)]
