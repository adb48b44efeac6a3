"""What a search is judged on: crops of photos that calibration does not use, and drawn pages.

Crops are drawn at random, as images come: picked ones would not predict a mean. Photos of nature
hold few white pages with dark strokes and few flat saturated colours, on which
INT8 of SR nets breaks first, so a few are drawn. Shapes: N crops, H W size, C channels; uint8.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from calibration.patches import split
from mipkd.core.images import ByteArray, downscale
from mipkd.core.photos import Photo
from mipkd.core.records import Holdout, Photos

_PAPERS = (
    (255, 255, 255),
    (255, 255, 255),
    (250, 244, 200),
    (20, 30, 120),
    (8, 8, 8),
    (220, 20, 30),
)


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
    drawn = [page(size * photos.scale, number, seed) for number in range(pages)]
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


def page(side: int, number: int, seed: int) -> ByteArray:
    """A square page: paper of one colour, lines of strokes as of text, a flat box, a gradient."""
    rng = np.random.default_rng((seed, number))
    paper = np.array(_PAPERS[number % len(_PAPERS)], np.float64)
    ink = 255 - paper if number % 3 else np.zeros(3) + (paper.mean() < 128) * 255
    sheet = np.broadcast_to(paper, (side, side, 3)).copy()
    box, top = side // 3, int(rng.integers(side // 2))
    sheet[top : top + box // 2, side - box :] = rng.choice([0, 255], 3)
    ramp = np.linspace(0, 1, side)[None, :, None]
    sheet[-box // 3 :] = (1 - ramp) * paper + ramp * rng.integers(0, 256, 3)
    tall = 10 + 4 * (number % 3)  # HR pixels of a letter
    for line in range(tall, side - tall, 2 * tall):
        _write(sheet, line, tall, ink, rng)
    return np.rint(sheet).astype(np.uint8)


def _write(
    sheet: np.ndarray, top: int, tall: int, ink: np.ndarray, rng: np.random.Generator
) -> None:
    """A line of letters: each some upright, level and slanting strokes."""
    left, thick = tall, max(2, tall // 6)
    while left < sheet.shape[1] - 2 * tall:
        if rng.random() < 0.8:
            for stroke in rng.choice(4, 3, replace=False):
                _stroke(sheet[top : top + tall, left : left + tall], int(stroke), thick, ink)
        left += tall + thick


def _stroke(cell: np.ndarray, kind: int, thick: int, ink: np.ndarray) -> None:
    wide = cell.shape[1] * 3 // 4
    if kind == 0:
        cell[:, :thick] = ink
    elif kind == 1:
        cell[:thick, :wide] = ink
    elif kind == 2:
        middle = cell.shape[0] // 2
        cell[middle : middle + thick, :wide] = ink
    else:
        for row in range(cell.shape[0]):
            start = row * (wide - thick) // cell.shape[0]
            cell[row, start : start + thick] = ink


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
