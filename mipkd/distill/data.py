"""Photos to train on and images to test on, decoded once, before training.

Shapes: N batch, H W low-res size, S scale. Values: float32 in [0, 1], RGB, unless uint8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from copy import copy
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
from mipkd.core.names import printable
from mipkd.core.photos import PhotoWriter, open_photos
from mipkd.core.records import Holdout, Photos, TeacherCache, TestSet
from mipkd.distill.batch import Batch
from mipkd.distill.cache_store import HalfArray, TeacherOutput, open_cache
from mipkd.distill.pair_reader import Pair as Pair
from mipkd.distill.pair_reader import PairReader, Size
from mipkd.losses.base import TeacherPass

AnyArray = npt.NDArray[Any]
_LEAST_LR = 16  # pixels a side: for an SSIM window inside the borders, and for nets' windows


def prepare_photos(source: Path | None, *, scale: int, patch: int, out: Path) -> Photos:
    """Decode every photo of a folder (None: the samples) and store it in `out`, HR and LR.

    LR is a published one of this scale where the folder holds it, else our own. Photos that cannot
    be read, are smaller than a patch or are there twice are left out with a warning.

    Raises:
        UsageError: none is left, or a published LR image is missing or has the wrong size.
        StageError: the disk is full.
    """
    label = name_source(source, for_tests=False)
    reader = _photo_reader(source, scale, patch)
    digest = hashlib.sha256(f"x{scale}".encode())
    with reader.explain_full_disk(out), closing(PhotoWriter(out)) as writer:
        for name, lr, hr in reader.pairs():
            writer.add(name, hr, lr)
            digest.update(hr.data)
            if name in reader.published:  # what we made ourselves follows from HR
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


def prepare_tests(source: Path | None, *, scale: int, out: Path) -> TestSet:
    """Write the test images as PNG to `out`/hr and `out`/lr.

    `source` is a folder of HR photos, a set with LR images in a known layout, or the HR part of
    such a set; None gives the samples. Images that cannot be read or are too small to
    measure are left out with a warning.

    Raises:
        UsageError: none is left, or a published LR image is missing or has the wrong size.
        StageError: the disk is full.
    """
    label = name_source(source, for_tests=True)
    reader = _test_reader(source, scale)
    names, digest = [], hashlib.sha256(f"x{scale}".encode())
    with reader.explain_full_disk(out):
        for kind in ("hr", "lr"):
            (out / kind).mkdir(parents=True, exist_ok=True)
        for name, lr, hr in reader.pairs():
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
    )


def look_at_photos(source: Path | None, *, scale: int, patch: int) -> list[Size]:
    """LR height and width of the photos that `prepare_photos` would store; nothing is stored.

    Raises:
        UsageError: as of `prepare_photos`.
    """
    reader = _photo_reader(source, scale, patch)
    if found := list(reader.lr_sizes()):
        return found
    raise _no_photo(reader, name_source(source, for_tests=False), patch)


def look_at_tests(source: Path | None, *, scale: int) -> list[Size]:
    """LR height and width of the images that `prepare_tests` would store; nothing is stored.

    Raises:
        UsageError: as of `prepare_tests`.
    """
    reader = _test_reader(source, scale)
    if found := list(reader.lr_sizes()):
        return found
    raise _no_test(reader, name_source(source, for_tests=True))


def _no_photo(reader: PairReader, label: str, patch: int) -> UsageError:
    least = patch * reader.scale
    return UsageError(
        f"{label}: none of {reader.count} photos can be used; the first: {reader.first_problem}",
        hint=reader.hint(f"photos need {least} pixels a side; --set distill.patch=N for less"),
    )


def _no_test(reader: PairReader, label: str) -> UsageError:
    least = _LEAST_LR * reader.scale
    return UsageError(
        f"{label}: none of {reader.count} test images can be used; "
        f"the first: {reader.first_problem}",
        hint=reader.hint(f"images of {least} pixels a side or more can be measured"),
    )


def _photo_reader(source: Path | None, scale: int, patch: int) -> PairReader:
    return PairReader(source, scale, least=patch * scale, least_is="a patch of ")


def _test_reader(source: Path | None, scale: int) -> PairReader:
    return PairReader(source, scale, least=_LEAST_LR * scale, for_tests=True)


def read_hr(source: Path | None, *, for_tests: bool) -> Iterator[tuple[str, ByteArray]]:
    """Name and HR of each image that would be trained or tested on, nothing prepared or said."""
    return PairReader(source, 1, least=_LEAST_LR, for_tests=for_tests).hr_images()


def name_source(source: Path | None, *, for_tests: bool) -> str:
    """What a folder, or the samples that stand in for it, is called."""
    kind = "test images" if for_tests else "photos"
    return printable(source) if source else f"sample {kind} of the package"


def probe_images(source: Path | None, *, scale: int, count: int = 5) -> list[Pair]:
    """A few test images, to settle what a checkpoint does not tell."""
    return list(islice(_test_reader(source, scale).pairs(), count))


def load_tests(tests: TestSet) -> list[Pair]:
    """The images of a prepared test set."""
    return [
        (name, read_rgb(tests.lr_file(name)), read_rgb(tests.hr_file(name)))
        for name in tests.images
    ]


def load_holdout(held: Holdout) -> list[Pair]:
    """The crops of photos that something is chosen on, without the drawn pages."""
    sides = (np.load(held.lr), np.load(held.hr))
    return [(f"held-{n}", *pair) for n, pair in enumerate(zip(*sides, strict=True))][: held.photos]


def load_probes(tests: TestSet) -> list[tuple[str, ByteArray]]:
    """The probes of a prepared test set: names and LR."""
    return [(name, read_rgb(tests.lr_file(name))) for name in tests.probes]


class PatchSampler:
    """Random patches, none of photos to `leave_out`; `batch` is a pure function of seed and step,
    so that a resume is exact."""

    def __init__(
        self,
        photos: Photos,
        *,
        patch: int,
        batch: int,
        seed: int,
        cache: TeacherCache | None = None,
        leave_out: Collection[int] = (),
    ) -> None:
        self.photos = open_photos(photos)
        self.drawn_from = [n for n in range(len(self.photos)) if n not in leave_out]
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
            index = self.drawn_from[rng.integers(len(self.drawn_from))]
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
