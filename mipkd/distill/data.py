"""Photos to train on and images to test on, decoded once, before training.

Shapes: H W size. Values: uint8 RGB.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray, read_rgb, write_png
from mipkd.core.measurement import Against
from mipkd.core.names import printable
from mipkd.core.photos import PhotoWriter
from mipkd.core.records import Holdout, Photos, TestSet
from mipkd.distill.pair_reader import Degrade, PairReader, Size
from mipkd.distill.pair_reader import Pair as Pair

log = logging.getLogger(__name__)

_LARGE = 10**8  # pixels of an output: gigabytes on the way to it
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
            hr = truth
            if hr is None:
                assert upscale, "something stands for a truth that is not there"
                _warn_of_size(label, name, lr, scale)
                hr = upscale(lr)
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


def _warn_of_size(label: str, name: str, lr_HWC: ByteArray, scale: int) -> None:
    height, width = (scale * side for side in lr_HWC.shape[:2])
    if height * width > _LARGE:
        say = (
            "%s: %s becomes %dx%d pixels in one piece: give smaller frames; HR photos: --no-lr-only"
        )
        log.warning(say, label, printable(name), width, height)


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


def load_holdout(held: Holdout) -> list[Pair]:
    """The crops of photos that something is chosen on, without the drawn pages."""
    sides = (np.load(held.lr), np.load(held.hr))
    return [(f"held-{n}", *pair) for n, pair in enumerate(zip(*sides, strict=True))][: held.photos]


def load_probes(tests: TestSet) -> list[tuple[str, ByteArray]]:
    """The probes of a prepared test set: names and LR."""
    return [(name, read_rgb(tests.lr_file(name))) for name in tests.probes]
