"""LR images that no name tells of: the same stem, a whole factor smaller, and alike to look at.

Sets say "H" and "L", "clean" and "noisy", "target" and "input", or words of their own.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path, PurePath

from mipkd.core.errors import UsageError
from mipkd.core.image_headers import size_of
from mipkd.core.images import read_photo
from mipkd.core.likeness import MOST_APART, hash_image
from mipkd.core.set_names import Facts

_SCALES = range(2, 9)
_LOOKED_AT = 3  # pairs whose content is compared, of each two folders or words
_MOST_VARIANTS = 12  # of one name: "IMG" of "IMG_0001", "IMG_0002" and so on is none
_TOKEN = re.compile(r"[^\s_.()\-]+")


@dataclass(frozen=True)
class File:
    """A file and what its path tells; `mine` where it lies in the folder that was given."""

    path: Path
    shown: PurePath  # from that folder
    mine: bool
    facts: Facts


Variant = tuple[Path, tuple[str, ...]]  # the folder, and what its stem has beside the name


def mark_twins(files: Sequence[File]) -> list[File]:
    """The files, those that are LR of another one by size and content marked as such."""
    variants = _variants(files)
    shared: dict[tuple[Variant, Variant], list[tuple[File, File]]] = defaultdict(list)
    for found in variants.values():
        for (high, hr), (low, lr) in permutations(found.items(), 2):
            if _may_be(hr, lr):
                shared[high, low].append((hr, lr))
    sized = [(scale, pairs) for pairs in shared.values() if (scale := _common_scale(pairs))]
    marked: dict[Path, File] = {}
    for scale, pairs in sorted(sized, key=lambda one: -one[0]):  # of X2 and HR, X4 is HR's
        if any(lr.path not in marked for _, lr in pairs) and _look_alike(pairs):
            for hr, lr in pairs:
                marked.setdefault(lr.path, replace(lr, facts=_lr_of(hr, lr, scale)))
    return [marked.get(one.path, one) for one in files]


def scale_between(high: tuple[int, int], low: tuple[int, int]) -> int:
    """The whole factor between two sizes, edges cropped or rounded up; 0 where there is none."""
    for scale in _SCALES:
        if all(h // scale <= s <= -(-h // scale) for h, s in zip(high, low, strict=True)):
            return scale
    return 0


def _variants(files: Sequence[File]) -> dict[str, dict[Variant, File]]:
    """For each name that several files share, the files by what else is in their paths."""
    named = {one.facts.keys[0] for one in files if one.facts.kind != "lr"}
    found: dict[str, dict[Variant, File]] = defaultdict(dict)
    for one in files:
        known = one.facts.kind == "lr" and any(key in named for key in one.facts.keys)
        if not known and not one.facts.by_other_method:
            for name, beside in _readings(one):
                found[name].setdefault((one.path.parent, beside), one)
    return {n: them for n, them in found.items() if 2 <= len(them) <= _MOST_VARIANTS}


def _readings(one: File) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The name that a stem may stand for, and what is left of it: one or two words at an end."""
    facts, stem = one.facts, one.path.stem.casefold()
    name = (facts.maybe_lr_of or facts.keys[-1])[-1]
    tokens = _TOKEN.findall(stem)
    yield stem, ()
    if name != stem:
        yield name, (stem.replace(name, "", 1),)
    for cut in range(1, min(3, len(tokens))):
        yield " ".join(tokens[:-cut]), tuple(tokens[-cut:])
    if len(tokens) > 1:
        yield " ".join(tokens[1:]), ("", tokens[0])


def _may_be(hr: File, lr: File) -> bool:
    return hr.path != lr.path and hr.facts.kind != "lr" and lr.facts.kind != "hr"


def _common_scale(pairs: Sequence[tuple[File, File]]) -> int:
    """The whole factor by which the LR image of each pair is smaller; 0 where there is none."""
    scale = 0
    for hr, lr in pairs:
        high, low = size_of(hr.path), size_of(lr.path)
        one = scale_between(high, low) if min(*high, *low) else 0
        if not one or scale not in (0, one):
            return 0
        scale = one
    return scale


def _look_alike(pairs: Sequence[tuple[File, File]]) -> bool:
    return all(_show_the_same(hr.path, lr.path) for hr, lr in pairs[:_LOOKED_AT])


def _show_the_same(one: Path, other: Path) -> bool:
    try:
        a, b = (hash_image(read_photo(path).rgb_HWC) for path in (one, other))
    except UsageError:
        return False
    return a is not None and b is not None and int((a != b).sum()) <= MOST_APART


def _lr_of(hr: File, lr: File, scale: int) -> Facts:
    return replace(
        lr.facts,
        kind="lr",
        scale=scale,
        keys=hr.facts.keys[:1],
        place=hr.facts.place,
        maybe_lr_of=(),
        by_folder=True,
        by_pixels=True,
    )
