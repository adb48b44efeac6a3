"""How well a perceptual hash tells copies of test images from other photos: decision 0023.

    python benchmarks/leakage.py ASSETS OUT.json

`ASSETS` holds `train/` and `test/`. Positives are test images changed as copies are; negatives are
all pairs of a photo with a test image and with another photo.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mipkd.core.folders import list_images
from mipkd.core.images import read_rgb
from mipkd.core.likeness import MOST_APART, Bits, hash_image, hash_views
from pipeline.origin import commit

PHOTOS = ("BSDS400", "T91", "SunHays40", "photos_hires", "photos_cc0")
TESTS = ("Set5", "Set14", "B100")


def main() -> None:
    """Write the distances of copies and of other photos, in bits of 256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assets", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    tests = [f for name in TESTS for f in list_images(asked.assets / "test" / name / "HR")]
    photos = [f for name in PHOTOS for f in list_images(asked.assets / "train" / name)]
    shown = [read_rgb(file) for file in tests]
    start = time.perf_counter()
    views = [hash_views(image) for image in shown]
    seconds = {"views of a test image": (time.perf_counter() - start) / len(tests)}
    hashes, views_of_photos, spent = [], [], 0.0
    for file in photos:
        image = read_rgb(file)
        start = time.perf_counter()
        hashes.append(hash_image(image))
        spent += time.perf_counter() - start
        views_of_photos.append(hash_views(image))
    seconds["hash of a photo"] = spent / len(photos)
    bits = np.array(hashes)
    stated = {
        "commit": commit(),
        "threshold_bits": MOST_APART,
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
        "copies": {name: _distances(change, shown, views) for name, change in CHANGES.items()},
        "photos and test images": _nearest(views, bits, tests, photos),
        "photos and photos": _nearest(views_of_photos, bits, photos, photos),
    }
    asked.out.write_text(json.dumps(stated, indent=1) + "\n")


def _distances(
    change: Callable[[Image.Image], Image.Image], shown: list[np.ndarray], views: list[Bits]
) -> dict[str, int]:
    copies = [hash_image(np.asarray(change(Image.fromarray(one)).convert("RGB"))) for one in shown]
    apart = [int((v != c).sum(1).min()) for v, c in zip(views, copies, strict=True)]
    missed = sum(one > MOST_APART for one in apart)
    return {"of": len(apart), "missed": missed, "median": int(np.median(apart)), "most": max(apart)}


def _nearest(
    views: list[Bits], bits: Bits, one: list[Path], other: list[Path]
) -> dict[str, object]:
    """How many pairs of different files are how near, and the nearest by name."""
    apart = np.array([[(v != b).sum(1).min() for b in bits] for v in views])
    if one is other:
        apart[np.tril_indices(len(one))] = bits.shape[1]
    order = np.argsort(apart, axis=None)[:8]
    at = [np.unravel_index(index, apart.shape) for index in order]
    names = [f"{one[a].parent.name}/{one[a].name} {other[b].name} {apart[a, b]}" for a, b in at]
    within = {str(most): int((apart <= most).sum()) for most in range(48, 97, 8)}
    pairs = len(one) * (len(one) - 1) // 2 if one is other else apart.size
    return {"pairs": pairs, "within_bits": within, "nearest": names}


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return Image.open(stored)


def _resize(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


def _crop(image: Image.Image, left: float, top: float, right: float, low: float) -> Image.Image:
    w, h = image.size
    return image.crop((int(w * left), int(h * top), w - int(w * right), h - int(h * low)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 95": lambda i: _jpeg(i, 95),
    "JPEG 75": lambda i: _jpeg(i, 75),
    "JPEG 30": lambda i: _jpeg(i, 30),
    "x 0.9": lambda i: _resize(i, 0.9),
    "x 0.5": lambda i: _resize(i, 0.5),
    "x 0.25": lambda i: _resize(i, 0.25),
    "mirrored, JPEG 75": lambda i: _jpeg(ImageOps.mirror(i), 75),
    "turned by 90": lambda i: i.rotate(90, expand=True),
    "turned by 180": lambda i: i.rotate(180),
    "turned by 270": lambda i: i.rotate(270, expand=True),
    "grey": lambda i: i.convert("L"),
    "2 % off each side": lambda i: _crop(i, 0.02, 0.02, 0.02, 0.02),
    "5 % off each side": lambda i: _crop(i, 0.05, 0.05, 0.05, 0.05),
    "7 % off each side": lambda i: _crop(i, 0.07, 0.07, 0.07, 0.07),
    "5 % off the left": lambda i: _crop(i, 0.05, 0, 0, 0),
    "5 % off left and top": lambda i: _crop(i, 0.05, 0.05, 0, 0),
    "5 % off right and top": lambda i: _crop(i, 0, 0.05, 0.05, 0),
    "brighter by 20 %": lambda i: i.point(lambda v: min(255, int(v * 1.2))),
    "3 % off, mirrored, x 0.9, JPEG 75": lambda i: _jpeg(
        _resize(ImageOps.mirror(_crop(i, 0.03, 0.03, 0.03, 0.03)), 0.9), 75
    ),
}

if __name__ == "__main__":
    main()
