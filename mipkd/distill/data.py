"""Photos to train on and images to test on, decoded once, before training.

Shapes: N batch, H W low-res size, S scale. Values: float32 in [0, 1], RGB, unless uint8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray, read_rgb, write_png
from mipkd.core.measurement import Against
from mipkd.core.names import printable
from mipkd.core.photos import PhotoWriter, open_photos
from mipkd.core.records import Photos, TeacherCache, TestSet
from mipkd.distill.batch import Batch
from mipkd.distill.cache_store import HalfArray, TeacherOutput, open_cache
from mipkd.distill.pair_reader import Degrade, PairReader, Size
from mipkd.distill.pair_reader import Pair as Pair
from mipkd.losses.base import TeacherPass

AnyArray = npt.NDArray[Any]
_LEAST_LR = 16  # pixels a side: for an SSIM window inside the borders, and for nets' windows


@dataclass(frozen=True)
class ImageKind:
    """What the images of a folder are: LR frames without truth, or HR whose LR `degrade` makes
    where there is none; None: bicubic."""

    lr_only: bool = False
    degrade: Degrade | None = None


PHOTOS = ImageKind()


def prepare_photos(
    source: Path | None, *, scale: int, patch: int, out: Path, kind: ImageKind = PHOTOS
) -> Photos:
    """Decode every photo of a folder (None: the samples) and store it in `out`, HR and LR.

    LR is a published one of this scale where the folder holds it, else our own. Photos that cannot
    be read, are smaller than a patch or are there twice are left out with a warning. Of LR frames
    without truth there is LR alone.

    Raises:
        UsageError: none is left, or a published LR image is missing or has the wrong size.
        StageError: the disk is full.
    """
    label = name_source(source, for_tests=False)
    reader = _photo_reader(source, scale, patch, kind)
    digest = hashlib.sha256(f"x{scale}".encode())
    with reader.explain_full_disk(out), closing(PhotoWriter(out)) as writer:
        for name, lr, hr in _read_images(reader):
            writer.add(name, hr, lr)
            if hr is not None:
                digest.update(hr.data)
            # What bicubic made follows from HR.
            if hr is None or kind.degrade or name in reader.published:
                digest.update(lr.data)
    reader.warn(label)
    if not writer.index:
        raise _no_photo(reader, label, patch)
    return Photos(
        folder=out,
        sha256=digest.hexdigest(),
        source=label,
        scale=scale,
        count=len(writer.index),
        skipped=tuple(reader.skipped),
        is_sample=source is None,
        left_out=reader.left_out(),
        lr_from=reader.lr_from(len(writer.index)),
    )


def prepare_tests(
    source: Path | None,
    *,
    scale: int,
    out: Path,
    kind: ImageKind = PHOTOS,
    upscale: Callable[[ByteArray], ByteArray] | None = None,
    against: Against = "truth",
) -> TestSet:
    """Write the test images as PNG to `out`/hr and `out`/lr.

    `source` is a folder of HR photos, a set with LR images in a known layout, or the HR part of
    such a set; None gives the samples. Images that cannot be read or are too small to
    measure are left out with a warning. Of LR frames without truth HR is what `upscale` makes of
    them, the net that `against` names.

    Raises:
        UsageError: none is left, or a published LR image is missing or has the wrong size.
        StageError: the disk is full.
    """
    label = name_source(source, for_tests=True)
    reader = _test_reader(source, scale, kind)
    names, digest = [], hashlib.sha256(f"x{scale}".encode())
    with reader.explain_full_disk(out):
        for part in ("hr", "lr"):
            (out / part).mkdir(parents=True, exist_ok=True)
        for name, lr, truth in _read_images(reader):
            assert truth is not None or upscale, "something stands for a truth that is not there"
            hr = upscale(lr) if truth is None and upscale else truth
            assert hr is not None
            write_png(out / "hr" / f"{name}.png", hr)
            write_png(out / "lr" / f"{name}.png", lr)
            digest.update(hr.data)
            digest.update(lr.data)
            names.append(name)
    reader.warn(label)
    if not names:
        raise _no_test(reader, label)
    return TestSet(
        folder=out,
        sha256=digest.hexdigest(),
        source=label,
        scale=scale,
        images=tuple(names),
        lr_from=reader.lr_from(len(names)),
        skipped=tuple(reader.skipped),
        is_sample=source is None,
        left_out=reader.left_out(),
        against=against,
    )


def _read_images(reader: PairReader) -> Iterator[tuple[str, ByteArray, ByteArray | None]]:
    """Name, LR and, where there is one, HR."""
    if reader.frames_of:
        return ((name, lr_HWC, None) for name, lr_HWC in reader.hr_images())
    return reader.pairs()


def look_at_photos(
    source: Path | None, *, scale: int, patch: int, kind: ImageKind = PHOTOS
) -> list[Size]:
    """LR height and width of the photos that `prepare_photos` would store; nothing is stored.

    Raises:
        UsageError: as of `prepare_photos`.
    """
    reader = _photo_reader(source, scale, patch, kind)
    if found := list(reader.lr_sizes()):
        return found
    raise _no_photo(reader, name_source(source, for_tests=False), patch)


def look_at_tests(source: Path | None, *, scale: int, kind: ImageKind = PHOTOS) -> list[Size]:
    """LR height and width of the images that `prepare_tests` would store; nothing is stored.

    Raises:
        UsageError: as of `prepare_tests`.
    """
    reader = _test_reader(source, scale, kind)
    if found := list(reader.lr_sizes()):
        return found
    raise _no_test(reader, name_source(source, for_tests=True))


def _no_photo(reader: PairReader, label: str, patch: int) -> UsageError:
    least = patch * reader.scale
    return UsageError(
        f"{label}: none of {reader.count} photos can be used; the first: {reader.first_problem}",
        hint=reader.hint(
            f"{'LR frames' if reader.frames_of else 'photos'} need {least} pixels a side; "
            "--set distill.patch=N for less"
        ),
    )


def _no_test(reader: PairReader, label: str) -> UsageError:
    least = _LEAST_LR * reader.scale
    return UsageError(
        f"{label}: none of {reader.count} test images can be used; "
        f"the first: {reader.first_problem}",
        hint=reader.hint(f"images of {least} pixels a side or more can be measured"),
    )


def _photo_reader(source: Path | None, scale: int, patch: int, kind: ImageKind) -> PairReader:
    if kind.lr_only:
        return PairReader(source, 1, least=patch, least_is="a patch of ", frames_of=scale)
    least = patch * scale
    return PairReader(source, scale, least=least, least_is="a patch of ", degrade=kind.degrade)


def _test_reader(source: Path | None, scale: int, kind: ImageKind = PHOTOS) -> PairReader:
    if kind.lr_only:
        return PairReader(source, 1, least=_LEAST_LR, for_tests=True, frames_of=scale)
    least = _LEAST_LR * scale
    return PairReader(source, scale, least=least, for_tests=True, degrade=kind.degrade)


def read_shown(
    source: Path | None, *, for_tests: bool, frames_of: int = 0
) -> Iterator[tuple[str, ByteArray]]:
    """Name and HR, or of LR frames without truth LR, of each image that would be trained or tested
    on, nothing prepared or said."""
    reader = PairReader(source, 1, least=_LEAST_LR, for_tests=for_tests, frames_of=frames_of)
    return reader.hr_images()


def name_source(source: Path | None, *, for_tests: bool) -> str:
    """What a folder, or the samples that stand in for it, is called."""
    kind = "test images" if for_tests else "photos"
    return printable(source) if source else f"sample {kind} of the package"


def probe_images(
    source: Path | None, *, scale: int, count: int = 5, degrade: Degrade | None = None
) -> list[Pair]:
    """A few test images, to settle what a checkpoint does not tell."""
    return list(islice(_test_reader(source, scale, ImageKind(degrade=degrade)).pairs(), count))


def load_tests(tests: TestSet) -> list[Pair]:
    """The images of a prepared test set."""
    return [
        (name, read_rgb(tests.lr_file(name)), read_rgb(tests.hr_file(name)))
        for name in tests.images
    ]


def load_probes(tests: TestSet) -> list[tuple[str, ByteArray]]:
    """The probes of a prepared test set: names and LR."""
    return [(name, read_rgb(tests.lr_file(name))) for name in tests.probes]


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

    @property
    def has_truth(self) -> bool:
        """Whether every photo has an HR image."""
        return all(photo.hr_HWC is not None for photo in self.photos)

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
        hr = self._cut(draws, scale, self._truth) if self.has_truth else None
        if cached == "none":
            return Batch(lr, hr)
        image = self._cut(draws, scale, lambda index: self.teacher_outputs[index].image_HWC)
        planes = latent_planes(self.teacher_outputs) if cached == "latents" else ()
        return Batch(lr, hr, image, tuple(self._cut(draws, 1, plane) for plane in planes))

    def _truth(self, index: int) -> ByteArray:
        hr_HWC = self.photos[index].hr_HWC
        assert hr_HWC is not None
        return hr_HWC

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
