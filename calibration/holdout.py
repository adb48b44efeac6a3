"""Images that a search is judged on: crops of photos that calibration does not use, and pages.

Crops are drawn at random, as images come: picked ones would not predict a mean.
Shapes: N crops, H W size, C channels; uint8.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from calibration.pages import TO_JUDGE, page
from calibration.patches import split
from mipkd.core.images import ByteArray, downscale
from mipkd.core.photos import Photo
from mipkd.core.records import Holdout, Photos


def hold(
    photos: Photos, *, count: int, pages: int, size: int, seed: int, split_seed: int, out: Path
) -> Holdout:
    """`count` crops of `size` LR pixels of held photos, then `pages` drawn ones, in `out`.

    Where no photo is that large the crops are as large as the largest allows.
    """
    _, held = split(photos, split_seed)
    size = min(size, max(min(p.lr_HWC.shape[:2]) for p in held))
    large = [p for p in held if min(p.lr_HWC.shape[:2]) >= size]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(large))  # as many photos as there are, each as often as others
    kept = [_crop(large[order[i % len(large)]], size, photos.scale, rng) for i in range(count)]
    drawn = [page(size * photos.scale, number, seed, TO_JUDGE) for number in range(pages)]
    kept += [(downscale(hr, photos.scale), hr) for hr in drawn]
    lr, hr = (np.stack(side) for side in zip(*kept, strict=True))
    np.save(out / "lr.npy", lr)
    np.save(out / "hr.npy", hr)
    return Holdout(
        lr=out / "lr.npy",
        hr=out / "hr.npy",
        sha256=hashlib.sha256(lr.tobytes() + hr.tobytes()).hexdigest(),
        source=photos.source,
        photos=count,
        pages=pages,
        size=(size, size),
        scale=photos.scale,
    )


def _crop(
    photo: Photo, size: int, scale: int, rng: np.random.Generator
) -> tuple[ByteArray, ByteArray]:
    top, left = (int(rng.integers(side - size + 1)) for side in photo.lr_HWC.shape[:2])
    lr = photo.lr_HWC[top : top + size, left : left + size]
    hr = photo.hr_HWC[
        top * scale : (top + size) * scale,
        left * scale : (left + size) * scale,
    ]
    return np.array(lr), np.array(hr)
