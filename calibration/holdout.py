"""Images that a search is judged on: crops of photos that calibration does not use, and pages.

Crops are drawn at random, as images come: picked ones would not predict a mean.
Shapes: N crops, H W size, C channels; uint8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from calibration.pages import TO_JUDGE, page
from calibration.patches import split
from mipkd.core.images import ByteArray, downscale
from mipkd.core.measurement import Against
from mipkd.core.photos import Photo
from mipkd.core.records import Holdout, Photos


def hold(
    photos: Photos,
    *,
    count: int,
    pages: int,
    size: int,
    seed: int,
    split_seed: int,
    out: Path,
    upscale: Callable[[ByteArray], ByteArray] | None = None,
    against: Against = "truth",
) -> Holdout:
    """`count` crops of `size` LR pixels of held photos, then `pages` drawn ones, in `out`, and as
    many of other photos and other pages that confirm what is chosen on the first.

    Where no photo is that large the crops are as large as the largest allows. Of LR frames without
    truth `upscale` makes what stands for it, of the pages too: the net that `against` names.
    """
    _, held = split(photos, split_seed)
    size = min(size, max(min(p.lr_HWC.shape[:2]) for p in held))
    large = [p for p in held if min(p.lr_HWC.shape[:2]) >= size]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(large)).tolist()
    halves = (order[::2], order[1::2] if len(large) > 1 else order)

    def cut(half: Sequence[int], first_page: int) -> tuple[ByteArray, ByteArray]:
        # As many photos as there are, each as often as others.
        crops = [large[half[i % len(half)]] for i in range(count)]
        kept = [_crop(photo, size, photos.scale, rng) for photo in crops]
        numbers = range(first_page, first_page + pages)
        drawn = [page(size * photos.scale, number, seed, TO_JUDGE) for number in numbers]
        kept += [(downscale(hr, photos.scale), hr) for hr in drawn]
        if upscale:
            kept = [(lr, upscale(lr)) for lr, _ in kept]
        lr, hr = (np.stack(side) for side in zip(*kept, strict=True))
        return lr, hr

    chosen_on, confirming = cut(halves[0], 0), cut(halves[1], pages)
    digest = hashlib.sha256()
    files = {"lr": chosen_on[0], "hr": chosen_on[1]}
    files |= {"confirming_lr": confirming[0], "confirming_hr": confirming[1]}
    for name, crops in files.items():
        np.save(out / f"{name}.npy", crops)
        digest.update(crops.tobytes())
    return Holdout(
        **{name: out / f"{name}.npy" for name in files},
        sha256=digest.hexdigest(),
        source=photos.source,
        photos=count,
        pages=pages,
        size=(size, size),
        scale=photos.scale,
        against=against,
    )


def _crop(
    photo: Photo, size: int, scale: int, rng: np.random.Generator
) -> tuple[ByteArray, ByteArray]:
    """LR and HR; without truth LR twice, until something stands for it."""
    top, left = (int(rng.integers(side - size + 1)) for side in photo.lr_HWC.shape[:2])
    lr = photo.lr_HWC[top : top + size, left : left + size]
    if photo.hr_HWC is None:
        return np.array(lr), np.array(lr)
    hr = photo.hr_HWC[
        top * scale : (top + size) * scale,
        left * scale : (left + size) * scale,
    ]
    return np.array(lr), np.array(hr)
