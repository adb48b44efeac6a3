"""LR frames without truth: whether a folder holds such, and which they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mipkd.core.folders import LeftOut
from mipkd.core.image_sets import (
    ImageSet,
    Member,
    find_lr_folder,
    gather_files,
    has_hr_beside,
    split_lr,
)
from mipkd.core.names import unique_names
from mipkd.core.set_names import folder_kind
from mipkd.core.twins import File, mark_twins


def is_lr_only(source: Path) -> bool:
    """Whether names say that a folder holds LR images and no HR one: "LR" in it, or its own name.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    found = gather_files(source)
    if folder := find_lr_folder(source.absolute()):
        return not has_hr_beside(folder)
    return all(one.mine and _in_lr_folder(one) for one in found.files)


def has_pairs(source: Path) -> bool:
    """Whether a folder is a set in which LR images have their HR ones.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    if find_lr_folder(source.absolute()):
        return False
    photos, lows = split_lr(mark_twins(gather_files(source).files), [])
    return bool(photos and lows)


def find_frames(source: Path, scale: int) -> ImageSet:
    """The LR images of a folder, for nets of a scale: of a set its LR part, else all.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    found = gather_files(source)
    mine, left_out = [one for one in found.files if one.mine], list(found.left_out)
    chosen = _choose_low(mine)
    paths = {one.path for one in chosen}
    left_out += [LeftOut(one.shown, "beside LR") for one in mine if one.path not in paths]
    other = [one for one in chosen if one.facts.kind == "lr" and one.facts.scale not in (0, scale)]
    left_out += [LeftOut(one.shown, "LR of another scale") for one in other]
    kept = sorted((one for one in chosen if one not in other), key=lambda one: one.shown.parts)
    names = unique_names([one.facts.shown for one in kept])
    members = (Member(name, one.path, None) for name, one in zip(names, kept, strict=True))
    return ImageSet(tuple(members), tuple(left_out))


def _choose_low(files: Sequence[File]) -> Sequence[File]:
    """What lies in folders of LR images, else what is LR of an image beside it, else all."""
    if inside := [one for one in files if _in_lr_folder(one)]:
        return inside
    _, lows = split_lr(mark_twins(files), [])
    return lows or files


def _in_lr_folder(one: File) -> bool:
    return any(folder_kind(part) == "lr" for part in one.shown.parts[:-1])
