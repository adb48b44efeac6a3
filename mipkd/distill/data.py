"""Photos to train on and images to test on, decoded once, before training.

Shapes: N batch, H W low-res size, S scale. Values: float32 in [0, 1], RGB, unless uint8.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mipkd.core.errors import StageError, UsageError
from mipkd.core.images import (
    ByteArray,
    crop_to_multiple,
    downscale,
    list_images,
    pixels_in,
    read_rgb,
    write_png,
)
from mipkd.core.photos import PhotoWriter, open_photos
from mipkd.core.records import Photos, TeacherCache, TestSet
from mipkd.core.samples import sample_photos, sample_tests
from mipkd.distill.batch import Batch
from mipkd.distill.cache_store import HalfArray, TeacherOutput, open_cache
from mipkd.losses.base import TeacherPass

log = logging.getLogger(__name__)

AnyArray = npt.NDArray[Any]
Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
_SAMPLE_TEST_SIZE = 256  # HR pixels a side
_LEAST_LR = 16  # pixels a side: for an SSIM window inside the borders, and for nets' windows
_NAMED = 3  # skipped files that are named if there are many


def prepare_photos(source: Path | None, *, scale: int, patch: int, out: Path) -> Photos:
    """Decode every photo of a folder (None: the samples), downscale it and store both in `out`.

    Photos that cannot be read or are smaller than a patch are skipped with a warning.

    Raises:
        UsageError: none is left.
        StageError: the disk is full.
    """
    files = list_images(source) if source else sample_photos()
    label = str(source or "sample photos of scikit-image and scikit-learn")
    skipped: list[str] = []
    digest, least = hashlib.sha256(f"x{scale}".encode()), patch * scale
    with _explain_full_disk(files, scale, out), closing(PhotoWriter(out)) as writer:
        for name, file, photo in _read_all(files, skipped):
            hr = np.ascontiguousarray(crop_to_multiple(photo, scale))
            if min(hr.shape[:2]) < least:
                _skip(skipped, file, f"{_size(hr)} is smaller than a patch of {least}x{least}")
                continue
            writer.add(name, hr, downscale(hr, scale))
            digest.update(hr.data)
    _warn_skipped(skipped, len(files))
    if not writer.index:
        raise UsageError(
            f"{label}: none of {len(files)} photos can be used; the first: {skipped[0]}",
            hint=f"photos need {least} pixels a side; --set distill.patch=N for less",
        )
    return Photos(
        folder=out,
        sha256=digest.hexdigest(),
        source=label,
        scale=scale,
        count=len(writer.index),
        skipped=tuple(skipped),
        is_sample=source is None,
    )


def prepare_tests(source: Path | None, *, scale: int, out: Path) -> TestSet:
    """Write the test images as PNG to `out`/hr and `out`/lr.

    `source` is a folder of HR photos, a set with `HR/` and `LR_bicubic/X<scale>/`, or the `HR`
    of such a set; None gives the samples, cropped. Images that cannot be read or are too small to
    measure are skipped with a warning.

    Raises:
        UsageError: none is left, or a published LR image is missing or has the wrong size.
        StageError: the disk is full.
    """
    files, published = _list_hr(source), _find_published_lr(source, scale)
    label = str(source or "sample photos of scikit-image")
    names, skipped, digest = [], list[str](), hashlib.sha256(f"x{scale}".encode())
    with _explain_full_disk(files, scale, out):
        for kind in ("hr", "lr"):
            (out / kind).mkdir(parents=True, exist_ok=True)
        for name, lr, hr in _read_pairs(source, scale, skipped):
            write_png(out / "hr" / f"{name}.png", hr)
            write_png(out / "lr" / f"{name}.png", lr)
            digest.update(np.ascontiguousarray(hr).data)
            digest.update(lr.data)
            names.append(name)
    _warn_skipped(skipped, len(files))
    if not names:
        raise UsageError(
            f"{label}: none of {len(files)} test images can be used; the first: {skipped[0]}",
            hint=f"images of {_LEAST_LR * scale} pixels a side or more can be measured",
        )
    return TestSet(
        folder=out,
        sha256=digest.hexdigest(),
        source=label,
        scale=scale,
        images=tuple(names),
        lr_from="published" if published else "bicubic",
        skipped=tuple(skipped),
        is_sample=source is None,
    )


def probe_images(source: Path | None, *, scale: int, count: int = 5) -> list[Pair]:
    """A few test images, to settle what a checkpoint does not tell."""
    return list(islice(_read_pairs(source, scale, []), count))


def load_tests(tests: TestSet) -> list[Pair]:
    """The images of a prepared test set."""
    folder = tests.folder
    return [
        (name, read_rgb(folder / "lr" / f"{name}.png"), read_rgb(folder / "hr" / f"{name}.png"))
        for name in tests.images
    ]


class PatchSampler:
    """Random patches; `batch` is a pure function of seed and step, so that a resume is exact."""

    def __init__(
        self,
        photos: Photos,
        *,
        patch: int,
        batch: int,
        seed: int,
        cache: TeacherCache | None = None,
    ) -> None:
        self.photos = open_photos(photos)
        self.scale, self.patch, self.size, self.seed = photos.scale, patch, batch, seed
        self.cache = cache
        self.teacher_outputs = open_cache(cache, photos.count) if cache else []
        self.rows = slice(0, batch)

    def share(self, rank: int, count: int) -> PatchSampler:
        """This process's rows of the same batches."""
        mine, rows = copy(self), self.size // count
        mine.rows = slice(rank * rows, (rank + 1) * rows)
        return mine

    def cached_part(self, wants: TeacherPass) -> TeacherPass:
        """The part of that pass that is cached for each photo: all of it, or none."""
        if not self.teacher_outputs or wants not in ("image", "latents"):
            return "none"
        return (
            "none" if wants == "latents" and self.teacher_outputs[0].latents_KHWL is None else wants
        )

    def batch(self, step: int, wants: TeacherPass = "none") -> Batch:
        """The patches of a step: random photo, position, flip and rotation."""
        draws, cached, scale = self.draw(step), self.cached_part(wants), self.scale
        lr = self._cut(draws, 1, lambda index: self.photos[index].lr_HWC)
        hr = self._cut(draws, scale, lambda index: self.photos[index].hr_HWC)
        if cached == "none":
            return Batch(lr, hr)
        image = self._cut(draws, scale, lambda index: self.teacher_outputs[index].image_HWC)
        planes = latent_planes(self.teacher_outputs) if cached == "latents" else ()
        return Batch(lr, hr, image, tuple(self._cut(draws, 1, plane) for plane in planes))

    def _cut(self, draws_N4: AnyArray, scale: int, image: Callable[[int], AnyArray]) -> Tensor:
        """The drawn patches of images `scale` times as large as LR, as float (N, C, P, P)."""
        side, first = self.patch * scale, image(0)
        patches = np.empty((len(draws_N4), side, side, first.shape[-1]), first.dtype)
        for row, (index, top, left, turn) in enumerate(draws_N4):
            high, low = top * scale, left * scale
            patches[row] = _turn(image(index)[high : high + side, low : low + side], turn)
        return _as_tensor(patches)

    def draw(self, step: int) -> npt.NDArray[np.int64]:
        """Photo, top and left in LR pixels, and turn (0 to 7) of each patch of a step, (N, 4)."""
        rng = np.random.default_rng([self.seed, step])
        drawn = np.empty((self.size, 4), np.int64)
        for row in range(self.size):
            index = rng.integers(len(self.photos))
            height, width = self.photos[index].lr_HWC.shape[:2]
            top, left = (rng.integers(side - self.patch + 1) for side in (height, width))
            drawn[row] = index, top, left, rng.integers(8)
        return drawn[self.rows]


def latent_planes(outputs: Sequence[TeacherOutput]) -> list[Callable[[int], HalfArray]]:
    """For each position a function from a photo's index to its latents there, (H, W, L)."""
    first = outputs[0].latents_KHWL
    assert first is not None
    return [partial(_plane, outputs, k) for k in range(len(first))]


def _plane(outputs: Sequence[TeacherOutput], k: int, index: int) -> HalfArray:
    latents_KHWL = outputs[index].latents_KHWL
    assert latents_KHWL is not None
    plane_HWL: HalfArray = latents_KHWL[k]
    return plane_HWL


def _turn(patch_HWC: AnyArray, turn: int) -> AnyArray:
    """One of the eight flips and quarter turns of a square."""
    if turn & 1:
        patch_HWC = patch_HWC[::-1]
    if turn & 2:
        patch_HWC = patch_HWC[:, ::-1]
    return patch_HWC.transpose(1, 0, 2) if turn & 4 else patch_HWC


def _as_tensor(images_NHWC: AnyArray) -> Tensor:
    """Float NCHW in channels-last memory; bytes are scaled to [0, 1]."""
    values = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    return values.float().div_(255) if values.dtype == torch.uint8 else values.float()


def _find_published_lr(source: Path | None, scale: int) -> Path | None:
    """The set's folder of LR files, if it has one."""
    for root in (source, source.parent if source and source.name == "HR" else None):
        if root and (root / "LR_bicubic" / f"X{scale}").is_dir():
            return root / "LR_bicubic" / f"X{scale}"
    return None


def _list_hr(source: Path | None) -> list[Path]:
    if source is None:
        return sample_tests()
    return list_images(source / "HR" if (source / "HR").is_dir() else source)


def _read_pairs(source: Path | None, scale: int, skipped: list[str]) -> Iterator[Pair]:
    published = _find_published_lr(source, scale)
    for name, file, photo in _read_all(_list_hr(source), skipped):
        hr = crop_to_multiple(photo if source else _centre(photo, _SAMPLE_TEST_SIZE), scale)
        if min(hr.shape[:2]) < _LEAST_LR * scale:
            least = f"{_LEAST_LR * scale}x{_LEAST_LR * scale}"
            _skip(skipped, file, f"{_size(hr)} is smaller than {least}, too small to be measured")
            continue
        if published is None:
            yield name, downscale(hr, scale), hr
            continue
        lr_file = published / f"{file.stem}x{scale}.png"
        if not lr_file.is_file():
            raise UsageError(
                f"{lr_file}: no such file", hint=f"{published} must hold the LR of every HR image"
            )
        lr = _read(lr_file, skipped)
        if lr is None:
            continue
        if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
            raise UsageError(
                f"{lr_file}: {_size(lr)} does not fit an HR image of {_size(hr)} at x{scale}"
            )
        yield name, lr, hr


def _read_all(files: Sequence[Path], skipped: list[str]) -> Iterator[tuple[str, Path, ByteArray]]:
    """Each readable image under a name that is unique in the list."""
    stems = Counter(file.stem.casefold() for file in files)
    for file in files:
        image = _read(file, skipped)
        if image is not None:
            alone = stems[file.stem.casefold()] == 1
            yield file.stem if alone else file.name, file, image


def _read(file: Path, skipped: list[str]) -> ByteArray | None:
    try:
        return read_rgb(file)
    except UsageError as error:
        _skip(skipped, file, error.what.removeprefix(f"{file}: "))
        return None


def _skip(skipped: list[str], file: Path, why: str) -> None:
    skipped.append(f"{file.name}: {why}")


def _warn_skipped(skipped: Sequence[str], count: int) -> None:
    """Warn of the files skipped of `count`; if there are many, name the first ones."""
    named = skipped if len(skipped) <= 2 * _NAMED else skipped[:_NAMED]
    for one in named:
        log.warning("skipped %s", one)
    if len(named) < len(skipped):
        log.warning("skipped %d of %d images in all; results.json names each", len(skipped), count)


def _size(image_HWC: ByteArray) -> str:
    return f"{image_HWC.shape[1]}x{image_HWC.shape[0]}"


@contextmanager
def _explain_full_disk(files: Sequence[Path], scale: int, out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        most = 3 * (1 + 1 / scale**2) * sum(pixels_in(file) for file in files)
        raise StageError(
            f"{out}: no space left on the disk",
            hint=f"up to {most / 1e6:.1f} MB are needed there; "
            "free some and run the same command again",
        ) from error


def _centre(image_HWC: ByteArray, size: int) -> ByteArray:
    top, left = ((side - size) // 2 for side in image_HWC.shape[:2])
    return image_HWC[top : top + size, left : left + size]
