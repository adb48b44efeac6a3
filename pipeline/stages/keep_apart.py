"""Refuse photos that show a test image, before anything is trained or calibrated on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mipkd.core.errors import UsageError
from mipkd.core.images import ByteArray
from mipkd.core.likeness import Copy, find_copies
from mipkd.core.photos import open_photos
from mipkd.core.records import Photos, TestSet
from mipkd.distill.data import load_tests, name_source, read_shown
from pipeline.stage import Ref, stage

Named = Iterable[tuple[str, ByteArray]]  # HR images, or LR frames without truth
_LISTED = 3  # photos that are named where there are more


@dataclass(frozen=True)
class KeepApartInputs:
    """Photos to train and calibrate on, and all images that something is judged on."""

    photos: Ref[Photos]
    tests: tuple[Ref[TestSet], ...]


@stage(version=2)
def keep_apart(inputs: KeepApartInputs, *, out: Path) -> int:
    """How many photos were compared with the test images; names and file formats do not matter.

    Raises:
        UsageError: a test image is among the photos, or a copy of it: compressed, resized, turned,
            mirrored, cropped by a few per cent or without colour.
    """
    photos = inputs.photos.value
    tested = chain.from_iterable(
        _of(one.source, ((n, hr if one.has_truth else lr) for n, lr, hr in load_tests(one)))
        for one in (ref.value for ref in inputs.tests)
    )
    shown = ((photo.name, photo.largest) for photo in open_photos(photos))
    _refuse(list(find_copies(shown, tested)), photos.source)
    return photos.count


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, ours for None; `frames_of` the scale of LR frames without truth."""

    path: Path | None
    frames_of: int = 0


def check_apart(photos: ImageFolder, tests: Sequence[ImageFolder]) -> None:
    """The same of folders from which nothing is prepared yet, for a plan.

    Raises:
        UsageError: a test image, or a copy of it, is among the photos.
    """
    if not any(one.path for one in (photos, *tests)):
        return  # the samples are apart, as their tests say
    tested = chain.from_iterable(
        _of(name_source(one.path, for_tests=True), _read(one, for_tests=True)) for one in tests
    )
    copies = find_copies(_read(photos, for_tests=False), tested)
    _refuse(list(copies), name_source(photos.path, for_tests=False))


def _read(folder: ImageFolder, *, for_tests: bool) -> Named:
    return read_shown(folder.path, for_tests=for_tests, frames_of=folder.frames_of)


def _of(source: str, images: Named) -> Iterator[tuple[str, ByteArray]]:
    return ((f"{name} of {source}", image_HWC) for name, image_HWC in images)


def _refuse(copies: Sequence[Copy], source: str) -> None:
    if not copies:
        return
    said = "; ".join(_say(copy, source) for copy in copies[:_LISTED])
    more = f"; and {len(copies) - _LISTED} more" if len(copies) > _LISTED else ""
    raise UsageError(
        f"--data: {said}{more}",
        hint="neither weights nor INT8 ranges may come from what they are judged on: "
        f"take {'it' if len(copies) == 1 else 'them'} out of --data",
    )


def _say(copy: Copy, source: str) -> str:
    what = "the test image" if copy.exact else "a copy of the test image"
    return f"{copy.photo} of {source} is {what} {copy.original}"
