"""What names of files and folders tell about test sets: high or low resolution, scale, set.

DIV2K, BasicSR, EDSR, RCAN, KAIR, SelfExSR and RealSR each have names of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

Kind = Literal["hr", "lr", ""]

_WORD_HR = r"(?:hr|gt|hq)"
_WORD_LR = r"(?:lr|lq)"
_HOW = r"(?:bicubic|bic|bi|bd|dn|unknown|mild|difficult|wild)"  # the LR image was made
_FOLDER_HR = re.compile(
    rf"(?:(?P<set>.+)[_-])?{_WORD_HR}(?:[_-]?mod[_-]?\d+)?"
    r"(?:[_-]?x(?P<scale>[2-8]))?(?:[_-]sub)?"
)
_FOLDER_LR = re.compile(
    rf"(?:(?P<set>.+)[_-])?{_WORD_LR}[_-]?(?P<how>{_HOW})?"
    r"(?:[_-]?x?(?P<scale>[2-8])x?)?(?:[_-]sub)?"
)
_FOLDER_FIRST = re.compile(rf"(?P<word>{_WORD_HR}|{_WORD_LR}(?:[_-]?{_HOW})?)[_-](?P<set>[a-z].*)")
_FOLDER_SCALE = re.compile(r"x(?P<scale>[2-8])(?:[_-]sub)?|(?P<scale2>[2-8])x")
_FOLDER_SRF = re.compile(r"image_srf_(?P<scale>[2-8])")
_HR_WORDS = ("original", "originals", "high", "highres", "highresolution", "groundtruth")
_LR_WORDS = ("low", "lowres", "lowresolution")
_APART = r"(?:[_-]|[. ]+\(?)"  # "bird_HR", "bird.HR", "bird (HR)"

_SRF = r"(?:[_-](?:srf[_-]|x)(?P<srf>[2-8]))?"
_STEM_HR = re.compile(
    rf"(?P<base>.+?){_SRF}{_APART}{_WORD_HR}(?:[_-]?x?(?P<scale>[2-8]))?\)?", re.I
)
_STEM_LR = re.compile(
    rf"(?P<base>.+?){_SRF}{_APART}{_WORD_LR}(?:[_-]?(?P<how>{_HOW}))?"
    r"(?:[_-]?x?(?P<scale>[2-8])x?)?\)?",
    re.I,
)
_STEM_FIRST = re.compile(rf"(?P<word>{_WORD_HR}|{_WORD_LR})[_-](?P<base>.+)", re.I)
_JOINED = re.compile(r"(?P<base>.*[a-z0-9])(?P<word>HR|GT|LR)")  # "birdLR", by its capitals
# DIV2K adds a letter for the degradation: 0801x4m.
_STEM_SCALE = re.compile(r"(?P<base>.+?)[_-]?x(?P<scale>[2-8])(?:[mdw]\d?)?", re.I)
_STEM_SCALE_FIRST = re.compile(r"(?P<base>.+?)[_-](?P<scale>[2-8])x", re.I)
# SelfExSR publishes what other methods made beside each pair.
_STEM_OTHER = re.compile(r"(?P<base>.+?)[_-]srf[_-](?P<srf>[2-8])[_-](?P<method>.+)", re.I)


@dataclass(frozen=True)
class Facts:
    """What a relative path tells."""

    kind: Kind
    scale: int  # 0 where it tells none
    keys: tuple[tuple[str, ...], ...]  # the set and the image, as in its HR: the likeliest first
    place: tuple[str, ...]  # the set alone
    shown: PurePath  # the path without folders that only say which of the two it is
    plain_bicubic: bool = True  # whether nothing tells of another way to make LR images
    by_folder: bool = False  # whether a folder says so, and not the file's own name
    # Where only a scale at the end says that it may be LR, such as "birdx4": the image's key.
    maybe_lr_of: tuple[str, ...] = ()
    by_other_method: bool = False
    by_pixels: bool = False  # whether no name says what it is, and size and content do


def read_names(file: PurePath) -> Facts:
    """What a path tells that is relative to the root of a set, or of a folder of sets."""
    kind: Kind = ""
    scale, how, rest, shown = 0, "", [], []
    for part in file.parts[:-1]:
        one = _read_folder(part, inside=bool(kind))
        kind, scale, how = one.kind or kind, one.scale or scale, one.how or how
        rest += [one.rest.casefold()] if one.rest else []
        shown += [one.rest] if one.rest else []
    stem = _read_stem(file.stem, kind)
    place, by_folder = tuple(rest), bool(kind) and not stem.kind
    # "linux2" in a folder of LR images is that of "linux2" before it is that of "linu".
    bases = (file.stem, stem.rest) if kind == "lr" and by_folder else (stem.rest,)
    maybe = bool(stem.scale and not stem.kind and not kind)
    bases = (file.stem,) if maybe else bases
    return Facts(
        kind=stem.kind or kind,
        scale=0 if maybe else scale if by_folder else stem.scale or scale,
        keys=tuple((*place, one.casefold()) for one in bases),
        place=place,
        shown=PurePath(*shown, file.name),
        plain_bicubic=(stem.how or how) in ("", "bi", "bic", "bicubic"),
        by_folder=by_folder,
        maybe_lr_of=(*place, stem.rest.casefold()) if maybe else (),
        by_other_method=stem.how == "other",
    )


@dataclass(frozen=True)
class _Part:
    """What one folder or stem tells, and what is left of it."""

    rest: str
    kind: Kind = ""
    scale: int = 0
    how: str = ""


def folder_kind(name: str) -> Kind:
    """Whether a folder's name says that it holds HR or LR images."""
    return _read_folder(name, inside=False).kind


def is_lr_part(name: str) -> bool:
    """Whether a folder in one of LR images would tell their scale or how they were made: "X4"."""
    part = re.compile(rf"{_FOLDER_SCALE.pattern}|[2-8]|{_HOW}")
    return bool(part.fullmatch(name.casefold()))


def _read_folder(name: str, *, inside: bool) -> _Part:
    folded = name.casefold()
    word = re.sub("[ _-]", "", folded)
    if word in _HR_WORDS or word in _LR_WORDS:
        return _Part("", "hr" if word in _HR_WORDS else "lr")
    if found := _FOLDER_SRF.fullmatch(folded):
        return _Part("", "lr", int(found["scale"]))
    if inside and (found := _FOLDER_SCALE.fullmatch(folded)):
        return _Part("", "", int(found["scale"] or found["scale2"]))
    kinds: tuple[tuple[Kind, re.Pattern[str]], ...] = (("hr", _FOLDER_HR), ("lr", _FOLDER_LR))
    for kind, pattern in kinds:
        if found := pattern.fullmatch(folded):
            groups = found.groupdict()
            rest = name[: len(groups["set"] or "")]
            return _Part(rest, kind, int(groups["scale"] or 0), groups.get("how") or "")
    if found := _JOINED.fullmatch(name):
        return _Part(found["base"], "lr" if found["word"] == "LR" else "hr")
    if found := _FOLDER_FIRST.fullmatch(folded):
        kind = "lr" if found["word"].startswith("l") else "hr"
        return _Part(name[-len(found["set"]) :], kind)
    return _Part(name)


def _read_stem(stem: str, folder: Kind) -> _Part:
    kinds: tuple[tuple[Kind, re.Pattern[str]], ...] = (("hr", _STEM_HR), ("lr", _STEM_LR))
    for kind, pattern in kinds:
        if found := pattern.fullmatch(stem):
            groups = found.groupdict()
            scale = int(groups["srf"] or groups["scale"] or 0)
            return _Part(found["base"], kind, scale, (groups.get("how") or "").casefold())
    if found := _STEM_OTHER.fullmatch(stem):
        return _Part(found["base"], "lr", int(found["srf"]), "other")
    for pattern in (_STEM_FIRST, _JOINED):
        if found := pattern.fullmatch(stem):
            return _Part(found["base"], "lr" if found["word"].casefold().startswith("l") else "hr")
    if folder != "hr":
        for pattern in (_STEM_SCALE, _STEM_SCALE_FIRST):
            if found := pattern.fullmatch(stem):
                return _Part(found["base"], "", int(found["scale"]))
    return _Part(stem)
