"""Photos to train on and images to test on, prepared once, so that no step decodes anything.

Shapes: N batch, H W low-res size, S scale. Values: float32 in [0, 1], RGB, unless uint8.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mipkd.core.errors import UsageError
from mipkd.core.images import (
    ByteArray,
    crop_to_multiple,
    downscale,
    list_images,
    read_rgb,
    write_png,
)
from mipkd.core.photos import PhotoWriter, open_photos
from mipkd.core.records import Photos, TestSet
from mipkd.core.samples import sample_photos, sample_tests

log = logging.getLogger(__name__)

Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
_SAMPLE_TEST_SIZE = 256  # HR pixels a side
_LEAST_LR = 16  # an LR image must leave an SSIM window inside its borders


def prepare_photos(source: Path | None, *, scale: int, patch: int, out: Path) -> Photos:
    """Decode every photo of a folder (None: the samples), shrink it, and store both in `out`.

    Photos that cannot be read or are smaller than a patch are skipped with a warning.

    Raises:
        UsageError: none is left.
    """
    files = list_images(source) if source else sample_photos()
    skipped: list[str] = []
    writer, digest = PhotoWriter(out), hashlib.sha256(f"x{scale}".encode())
    try:
        for name, hr in _readable(files, skipped):
            hr = crop_to_multiple(hr, scale)
            if min(hr.shape[:2]) < patch * scale:
                _skip(skipped, name, f"{hr.shape[1]}x{hr.shape[0]} is smaller than a patch")
                continue
            writer.add(name, hr, downscale(hr, scale))
            digest.update(hr.tobytes())
    finally:
        writer.close()
    if not writer.index:
        raise UsageError(
            f"{source}: none of {len(files)} photos can be used; the first: {skipped[0]}",
            hint=f"photos need {patch * scale} pixels a side; --set distill.patch=N for less",
        )
    return Photos(
        folder=out,
        sha256=digest.hexdigest(),
        source=str(source or "sample photos of scikit-image and scikit-learn"),
        scale=scale,
        count=len(writer.index),
        skipped=tuple(skipped),
        is_sample=source is None,
    )


def prepare_tests(source: Path | None, *, scale: int, out: Path) -> TestSet:
    """The test images as PNG in `out`/hr and `out`/lr.

    `source` is a folder of HR photos, or a set with `HR/` and `LR_bicubic/X<scale>/`; None
    gives the samples, cropped.

    Raises:
        UsageError: none can be read, or a published LR image has the wrong size.
    """
    skipped: list[str] = []
    published = _published(source, scale)
    names, digest = [], hashlib.sha256(f"x{scale}".encode())
    for kind in ("hr", "lr"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    for name, lr, hr in _pairs(source, scale, skipped, published):
        if min(lr.shape[:2]) < _LEAST_LR:
            _skip(skipped, name, f"{hr.shape[1]}x{hr.shape[0]} is too small to be measured")
            continue
        write_png(out / "hr" / f"{name}.png", hr)
        write_png(out / "lr" / f"{name}.png", lr)
        digest.update(hr.tobytes() + lr.tobytes())
        names.append(name)
    if not names:
        raise UsageError(f"{source}: no test image can be used; the first: {skipped[0]}")
    return TestSet(
        folder=out,
        sha256=digest.hexdigest(),
        source=str(source or "sample photos of scikit-image"),
        scale=scale,
        images=tuple(names),
        lr_from="published" if published else "bicubic",
        skipped=tuple(skipped),
        is_sample=source is None,
    )


def probe_images(source: Path | None, *, scale: int, count: int = 5) -> list[Pair]:
    """A few test images, for settling what a checkpoint does not tell."""
    pairs = _pairs(source, scale, [], _published(source, scale))
    return [pair for pair, _ in zip(pairs, range(count), strict=False)]


def load_tests(tests: TestSet) -> list[Pair]:
    """The images of a prepared test set."""
    folder = tests.folder
    return [
        (name, read_rgb(folder / "lr" / f"{name}.png"), read_rgb(folder / "hr" / f"{name}.png"))
        for name in tests.images
    ]


class PatchSampler:
    """Random patches; `batch` is a pure function of seed and step, so that a resume is exact."""

    def __init__(self, photos: Photos, *, patch: int, batch: int, seed: int) -> None:
        self.photos = open_photos(photos)
        self.scale, self.patch, self.size, self.seed = photos.scale, patch, batch, seed

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """LR (N, 3, P, P) and HR (N, 3, S*P, S*P) of a step: random photo, place, flip, turn."""
        rng = np.random.default_rng([self.seed, step])
        p, s = self.patch, self.scale
        lr = np.empty((self.size, p, p, 3), np.uint8)
        hr = np.empty((self.size, p * s, p * s, 3), np.uint8)
        for row in range(self.size):
            photo = self.photos[rng.integers(len(self.photos))]
            top = rng.integers(photo.lr_HWC.shape[0] - p + 1)
            left = rng.integers(photo.lr_HWC.shape[1] - p + 1)
            turn = int(rng.integers(8))
            lr[row] = _turned(photo.lr_HWC[top : top + p, left : left + p], turn)
            high, low = top * s, left * s
            hr[row] = _turned(photo.hr_HWC[high : high + p * s, low : low + p * s], turn)
        return _as_tensor(lr), _as_tensor(hr)


def _turned(patch_HWC: ByteArray, turn: int) -> ByteArray:
    """One of the eight flips and quarter turns of a square."""
    if turn & 1:
        patch_HWC = patch_HWC[::-1]
    if turn & 2:
        patch_HWC = patch_HWC[:, ::-1]
    return patch_HWC.transpose(1, 0, 2) if turn & 4 else patch_HWC


def _as_tensor(images_NHWC: ByteArray) -> Tensor:
    """Float NCHW over channels-last memory, as the pixels already lie."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float().div_(255)


def _published(source: Path | None, scale: int) -> Path | None:
    """The folder of LR files that belongs to a set, if it has one."""
    for root in (source, source.parent if source and source.name == "HR" else None):
        if root and (root / "LR_bicubic" / f"X{scale}").is_dir():
            return root / "LR_bicubic" / f"X{scale}"
    return None


def _pairs(
    source: Path | None, scale: int, skipped: list[str], published: Path | None
) -> Iterator[Pair]:
    photos = source / "HR" if source and (source / "HR").is_dir() else source
    for name, hr in _readable(list_images(photos) if photos else sample_tests(), skipped):
        if source is None:
            hr = _centre(hr, _SAMPLE_TEST_SIZE)
        hr = crop_to_multiple(hr, scale)
        if published is None:
            yield name, downscale(hr, scale), hr
            continue
        file = published / f"{name}x{scale}.png"
        lr = read_rgb(file)
        if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
            raise UsageError(
                f"{file}: {lr.shape[1]}x{lr.shape[0]} does not fit an HR image of "
                f"{hr.shape[1]}x{hr.shape[0]} at x{scale}"
            )
        yield name, lr, hr


def _readable(files: Sequence[Path], skipped: list[str]) -> Iterator[tuple[str, ByteArray]]:
    for file in files:
        try:
            image = read_rgb(file)
        except UsageError as error:
            _skip(skipped, file.name, error.what)
            continue
        yield file.stem, image


def _skip(skipped: list[str], name: str, why: str) -> None:
    log.warning("skipped %s: %s", name, why)
    skipped.append(f"{name}: {why}")


def _centre(image_HWC: ByteArray, size: int) -> ByteArray:
    top, left = ((side - size) // 2 for side in image_HWC.shape[:2])
    return image_HWC[top : top + size, left : left + size]
