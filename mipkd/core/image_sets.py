"""A folder of photos or a test set: which files are HR images, which the LR of which, what is left.

Pairs are known by their names and sizes, in one folder or in the layouts that sets are published
in. What is LR of an image beside it is never taken for a photo.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePath

from mipkd.core.errors import UsageError
from mipkd.core.folders import LeftOut, walk_images
from mipkd.core.image_headers import size_of
from mipkd.core.names import printable, unique_names
from mipkd.core.set_names import Kind, folder_kind, is_lr_part, read_names
from mipkd.core.twins import File, mark_twins, scale_between

log = logging.getLogger(__name__)

_UP = 3  # folders: RCAN's `HR/Set5/x4` has its LR images three above

Key = tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """An HR image, and its published LR one where there is one of the scale."""

    name: str  # that no other has, fit for a file
    hr: Path
    lr: Path | None


@dataclass(frozen=True)
class ImageSet:
    """The images of a folder, sorted by relative path."""

    members: tuple[Member, ...]
    left_out: tuple[LeftOut, ...]


@dataclass
class Gathered:
    """The files of a folder and, if it is the HR part of a set, of the LR parts beside it."""

    base: Path
    files: list[File] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def find_set(source: Path, scale: int) -> ImageSet:
    """The HR images of a folder with their LR ones of a scale.

    Raises:
        UsageError: no such folder, no image in it, it holds the LR images of a set, or some of
            its HR images alone have LR ones in a published layout.
    """
    found = gather_files(source)
    _check_not_lr(source.absolute())
    left_out = list(found.left_out)
    photos, lows = split_lr(mark_twins(found.files), left_out)
    photos = _of_scale(photos, scale, left_out)
    pairs = _match(lows, photos, scale, left_out)
    by_pixels = {low.path for low in lows if low.facts.by_pixels}
    _check_complete(photos, {hr: lr for hr, lr in pairs.items() if lr not in by_pixels})
    names = unique_names([one.facts.shown for one in photos])
    members = tuple(
        Member(name, one.path, pairs.get(one.path)) for name, one in zip(names, photos, strict=True)
    )
    return ImageSet(members, tuple(left_out))


def hash_folder(folder: Path) -> str:
    """sha256 over names and contents of all images in a folder and the folders below it, those of
    published LR images beside it too, and over the names of photos that cannot be read here.

    Raises:
        UsageError: no such folder, no image in it, or a file in it may not be read.
    """
    found, digest = gather_files(folder), hashlib.sha256()
    for one in found.files:
        digest.update(os.fsencode(os.path.relpath(one.path, found.base)))
        try:
            digest.update(bytes.fromhex(hash_file(one.path)))
        except OSError as error:
            raise UsageError(f"{one.path}: cannot be read: {error.strerror}") from error
    for left in found.left_out:
        digest.update(os.fsencode(left.file) + left.reason.encode())
    return digest.hexdigest()


def find_lr_folder(source: Path) -> Path | None:
    """The folder of LR images that a folder is, or a part of: "LRbicx4", "LR_bicubic/X4"."""
    for folder in (source, *source.parents)[: _UP + 1]:
        if folder_kind(folder.name) == "lr":
            return folder
        if not is_lr_part(folder.name):
            return None
    return None


def has_hr_beside(folder: Path) -> bool:
    """Whether the HR images of a folder of LR ones are beside it."""
    return any(_files_of(one) for one in _folders_of(folder.parent, "hr"))


def _check_not_lr(source: Path) -> None:
    """Say where a folder holds LR images.

    Raises:
        UsageError: the HR images of the set are beside it.
    """
    if (folder := find_lr_folder(source)) is None:
        return
    if has_hr_beside(folder):
        raise UsageError(
            f"{source}: holds the LR images of a set, not its HR ones",
            hint=f"give the set's folder: {folder.parent}; or --lr-only to leave its HR images out",
        )
    log.warning("%s: holds LR images by its name; they are taken as HR", printable(source))


def gather_files(source: Path) -> Gathered:
    """The images under a folder, and under folders of LR images that belong to it."""
    walked, root = walk_images(source), source.absolute()
    base = _set_of(root)
    found = Gathered(base, left_out=walked.left_out)
    for file in walked.files:
        shown = file.relative_to(source)
        facts = read_names((root / shown).relative_to(base))
        facts = replace(facts, shown=read_names(shown).shown)
        found.files.append(File(file, shown, True, facts))
    for folder in _lr_folders(base) if base != root else ():
        for file in _files_of(folder):
            facts = read_names(file.relative_to(base))
            if facts.kind == "lr":
                beside = PurePath(os.path.relpath(file, root))
                found.files.append(File(file, beside, False, facts))
    return found


def _set_of(source: Path) -> Path:
    """The folder of the set whose HR images a folder holds; the folder itself where none is."""
    above = source
    for _ in range(_UP):
        if folder_kind(above.name) == "hr":
            return above.parent if _owns_lr(above) else source
        if above == above.parent:
            break
        above = above.parent
    return source


def _owns_lr(folder: Path) -> bool:
    """Whether the LR images beside a folder of HR images are made of them, and not of cropped ones
    that lie there too."""
    if not _lr_folders(folder.parent):
        return False
    beside = (one for one in folder.parent.iterdir() if one != folder)
    cropped = any(folder_kind(one.name) == "hr" for one in beside)
    return folder.name.casefold() != "original" or not cropped


def _lr_folders(base: Path) -> list[Path]:
    return _folders_of(base, "lr")


def _folders_of(base: Path, kind: Kind) -> list[Path]:
    try:
        found = [one for one in base.iterdir() if folder_kind(one.name) == kind and one.is_dir()]
    except OSError:
        return []
    return sorted(found)


def _files_of(folder: Path) -> list[Path]:
    try:
        return walk_images(folder).files
    except UsageError:
        return []  # no image in it


def split_lr(files: Sequence[File], left_out: list[LeftOut]) -> tuple[list[File], list[File]]:
    """Photos, and what is LR of one of them."""
    photos = [one for one in files if one.facts.kind != "lr"]
    pool = _by_key(photos)
    structured = {one.facts.place for one in photos if one.facts.kind == "hr"}
    lows: list[File] = []
    lone: list[File] = []
    for one in (one for one in files if one.facts.kind == "lr"):
        known = any(key in pool for key in one.facts.keys)
        (lows if known or one.facts.place in structured else lone).append(one)
    paired = {one.path.parent for one in lows}
    lows += [one for one in lone if one.path.parent in paired or not one.mine]
    photos += [one for one in lone if one.path.parent not in paired and one.mine]
    small = {one.path for one in photos if _is_small_twin(one, pool)}
    lows += [one for one in photos if one.path in small]
    photos = sorted((p for p in photos if p.path not in small), key=lambda p: p.shown.parts)
    return _drop_beside(photos, left_out), lows


def _is_small_twin(one: File, pool: dict[Key, list[File]]) -> bool:
    """Whether names and sizes say that it is LR of another one: "birdx4" of "bird", or "bird" of
    "bird_HR"."""
    facts = one.facts
    if facts.maybe_lr_of:
        others = pool.get(facts.maybe_lr_of, [])
    elif not facts.kind:
        others = [p for p in pool.get(facts.keys[0], []) if p.facts.kind == "hr"]
    else:
        return False
    sizes = [size_of(other.path) for other in others]
    return any(not min(size) or scale_between(size, size_of(one.path)) for size in sizes)


def _drop_beside(photos: list[File], left_out: list[LeftOut]) -> list[File]:
    """A set's HR images alone, where its root has a folder of that name."""
    if not any(p.mine and p.shown.parts[0].casefold() in ("hr", "gt") for p in photos):
        return photos
    kept = [p for p in photos if p.facts.kind == "hr"]
    left_out += [LeftOut(p.shown, "beside HR") for p in photos if p.facts.kind != "hr"]
    return kept


def _of_scale(photos: list[File], scale: int, left_out: list[LeftOut]) -> list[File]:
    """Of the HR images that are there once for each scale the ones of this scale."""
    pool, kept = _by_key(photos), []
    # BasicSR: `GTmod12` holds those of `original` again, cropped. SelfExSR: `image_SRF_4` too, by
    # other names.
    cropped = {p.facts.keys[0] for p in photos if p.facts.kind == "hr" and not _is_original(p)}
    whole = {p.facts.place for p in photos if _is_original(p)}
    scaled = {p.facts.place for p in photos if p.facts.scale == scale} & whole
    for one in photos:
        place, own = one.facts.place, one.facts.scale
        others = {other.facts.scale for other in pool[one.facts.keys[0]]}
        best = scale if scale in others else min(others)
        again = _is_original(one) if place in scaled else place in whole and own > 0
        again = again or (_is_original(one) and one.facts.keys[0] in cropped)
        if own == best and not again:
            kept.append(one)
        else:
            left_out.append(LeftOut(one.shown, "HR for another scale"))
    return kept


def _is_original(one: File) -> bool:
    return one.path.parent.name.casefold() == "original"


def hash_file(file: Path) -> str:
    """sha256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _match(
    lows: Sequence[File], photos: Sequence[File], scale: int, left_out: list[LeftOut]
) -> dict[Path, Path]:
    """For HR images their LR ones; the others are counted."""
    pool, pairs = _by_key(photos), dict[Path, Path]()
    for low in sorted(lows, key=lambda low: (not low.facts.plain_bicubic, low.shown.parts)):
        hr = _partner(low, pool)
        reason = _why_not(low, hr, scale)
        if hr and not reason and hr.path not in pairs:
            pairs[hr.path] = low.path
        elif low.mine:
            left_out.append(LeftOut(low.shown, reason or "another LR of a pair"))
    return pairs


def _partner(low: File, pool: dict[Key, list[File]]) -> File | None:
    facts = low.facts
    keys = (facts.maybe_lr_of,) if facts.maybe_lr_of else facts.keys
    return next(chain.from_iterable(pool.get(key, []) for key in keys), None)


def _why_not(low: File, hr: File | None, scale: int) -> str:
    """Why an LR image is not used; "" where it is."""
    if hr is None:
        return "LR without its HR"
    if low.facts.by_other_method:
        return "result of another method"
    if low.facts.scale and low.facts.by_folder:
        return "" if low.facts.scale == scale else "LR of another scale"
    high, small = size_of(hr.path), size_of(low.path)
    if small == tuple(side // scale for side in high) and min(small):
        return ""
    between = scale_between(high, small)
    return "LR of another scale" if between not in (0, scale) else "LR whose size does not fit"


def _check_complete(photos: Sequence[File], pairs: dict[Path, Path]) -> None:
    """Refuse a set whose LR images have a folder of their own in which some are missing.

    Raises:
        UsageError: names the first of them.
    """
    examples = {p.facts.place: p.path for p in photos if _is_apart(p.path, pairs)}
    for one in photos:
        if one.facts.place in examples and one.path not in pairs:
            hr = examples[one.facts.place]
            lr = pairs[hr]
            missing = lr.with_name(lr.name.replace(hr.stem, one.path.stem))
            raise UsageError(
                f"{missing}: no such file", hint=f"{lr.parent} must hold the LR of every HR image"
            )


def _is_apart(hr: Path, pairs: dict[Path, Path]) -> bool:
    """Whether an HR image has an LR one, in another folder."""
    return hr in pairs and pairs[hr].parent != hr.parent


def _by_key(files: Sequence[File]) -> dict[Key, list[File]]:
    found = defaultdict(list)
    for one in files:
        found[one.facts.keys[0]].append(one)
    return dict(found)
