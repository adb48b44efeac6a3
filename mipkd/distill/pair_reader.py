"""Read the HR and LR images of a folder one after the other, and count what is left out.

Shapes: H W size, C channels. Values: uint8 RGB.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np

from mipkd.core.errors import StageError, UsageError
from mipkd.core.folders import LeftOut, count_reasons, readable_suffixes, say_reasons
from mipkd.core.image_headers import pixels_in, size_of
from mipkd.core.image_sets import ImageSet, Member, find_set, hash_file
from mipkd.core.images import ByteArray, crop_to_multiple, downscale, read_photo
from mipkd.core.lr_frames import find_frames
from mipkd.core.names import printable, unique_names
from mipkd.core.records import FRAMES
from mipkd.core.samples import sample_photos, sample_tests

log = logging.getLogger(__name__)

T = TypeVar("T")
Pair = tuple[str, ByteArray, ByteArray]  # name, LR, HR
Degrade = Callable[[ByteArray], ByteArray]  # from HR to LR
Size = tuple[int, int]  # height, width
_READ = 2  # of the images that are looked at: what calibration needs
_NAMED = 3  # files of each kind of message that are named if there are many
# Parts of published sets that a run at one scale has no use for: nobody misses them.
_EXPECTED = ("LR of another scale", "HR for another scale", "another LR of a pair")


class PairReader:
    """The images of a folder, or the samples, as pairs of one scale.

    `least` is what HR images need a side; without a folder `for_tests` says which samples.
    `degrade` makes LR images in the place of bicubic. With `frames_of` the LR frames for nets of
    that scale are read, as images of scale 1 without LR ones of their own.
    """

    def __init__(
        self,
        source: Path | None,
        scale: int,
        *,
        least: int,
        for_tests: bool = False,
        least_is: str = "",
        degrade: Degrade | None = None,
        frames_of: int = 0,
    ) -> None:
        self.source, self.scale, self.frames_of = source, scale, frames_of
        self._least, self._least_is, self._degrade = least, least_is, degrade
        found = _find_images(source, scale, frames_of, for_tests=for_tests)
        self._members, self._left_out = found.members, list(found.left_out)
        self._notes: list[str] = []
        self._read_whole = 0  # of those looked at
        self.published: set[str] = set()  # names of those with LR images of their own
        self.count = len(self._members)

    def pairs(self) -> Iterator[Pair]:
        """Each image that can be used: its name, LR and HR.

        Raises:
            UsageError: a published LR image has the wrong size.
        """
        for member, hr_HWC in self._images():
            lr_HWC = self._lr_of(member, hr_HWC)
            if lr_HWC is not None:
                yield member.name, lr_HWC, hr_HWC

    def hr_images(self) -> Iterator[tuple[str, ByteArray]]:
        """Name and HR of each image that can be used."""
        return ((member.name, hr_HWC) for member, hr_HWC in self._images())

    def lr_sizes(self) -> Iterator[Size]:
        """LR height and width of each image that can be used, as headers tell; the first are read.

        Raises:
            UsageError: a published LR image has the wrong size.
        """
        for member, size in self._usable(self._look_at):
            lr_size = size[0] // self.scale, size[1] // self.scale
            if member.lr and size_of(member.lr) != lr_size:
                hr_HWC = self._read_hr(member)
                if hr_HWC is None or self._lr_of(member, hr_HWC) is None:
                    continue
            yield lr_size

    def _images(self) -> Iterator[tuple[Member, ByteArray]]:
        return self._usable(self._read_hr)

    def _usable(self, read: Callable[[Member], T | None]) -> Iterator[tuple[Member, T]]:
        """Each image of which `read` gives something, once."""
        first = dict[tuple[int, str], Member]()
        sizes = Counter(member.hr.stat().st_size for member in self._members if member.hr.exists())
        for member in self._members:
            found = read(member)
            if found is None:
                continue
            size = member.hr.stat().st_size
            key = size, hash_file(member.hr) if sizes[size] > 1 else ""
            same = first.setdefault(key, member)
            if same is member:
                yield member, found
            else:
                why = f"the same file as {self._shown(same.hr)}"
                self._leave_out(member.hr, "duplicate", why)

    @property
    def skipped(self) -> list[str]:
        """Those that could not be used, and why."""
        left = (one for one in self._left_out if one.reason not in _EXPECTED)
        return [printable(str(one)) for one in left]

    @property
    def first_problem(self) -> str:
        """The first image that was looked into and cannot be used."""
        return next(printable(str(one)) for one in self._left_out if one.why)

    def hint(self, of_small: str) -> str:
        """What to do where none can be used, `of_small` where some are too small."""
        known = "known: " + " ".join(readable_suffixes())
        return (
            of_small if "too small" in self.left_out() else f"give images that can be read; {known}"
        )

    def left_out(self) -> dict[str, int]:
        """How many files were left out, by reason."""
        return count_reasons(self._left_out)

    def lr_from(self, used: int) -> str:
        """Where the LR of the `used` images came from."""
        if self.frames_of:
            return FRAMES
        ours, published = "degraded" if self._degrade else "bicubic", len(self.published)
        if not published:
            return ours
        return "published" if published == used else "partly degraded" if self._degrade else "mixed"

    def warn(self, label: str) -> None:
        """Say what was left out and what was assumed: the first ones by name, all by number."""
        named = [str(one) for one in self._left_out if one.why]
        for what, lines in (("skipped ", named), ("", self._notes)):
            for line in lines if len(lines) <= 2 * _NAMED else lines[:_NAMED]:
                log.warning("%s%s", what, printable(line))
        if len(self._notes) > 2 * _NAMED:
            log.warning("%s: %d files like these", label, len(self._notes))
        if counts := self.left_out():
            say = log.info if counts.keys() <= set(_EXPECTED) else log.warning
            first = ", ".join(printable(str(one.file)) for one in self._left_out[:_NAMED])
            more = ", ..." if len(self._left_out) > _NAMED else ""
            say("%s: left out: %s: %s%s", label, say_reasons(counts), first, more)

    @contextmanager
    def explain_full_disk(self, out: Path) -> Iterator[None]:
        """Say how much a store in `out` needs where the disk is full.

        Raises:
            StageError: it is.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            pixels = sum(pixels_in(member.hr) for member in self._members)
            most = 3 * (1 + (self.frames_of or 1 / self.scale) ** 2) * pixels
            raise StageError(
                f"{out}: no space left on the disk",
                hint=f"up to {most / 1e6:.1f} MB are needed there; "
                "free some and run the same command again",
            ) from error

    def _read_hr(self, member: Member) -> ByteArray | None:
        """The photo, its sides multiples of the scale; None where it cannot be used."""
        image = self._read(member.hr)
        if image is None:
            return None
        hr_HWC = np.ascontiguousarray(crop_to_multiple(image, self.scale))
        return hr_HWC if self._is_large(member, hr_HWC.shape[:2]) else None

    def _look_at(self, member: Member) -> Size | None:
        """The photo's size, its sides multiples of the scale; None where it cannot be used."""
        height, width = size_of(member.hr) if self.source else (0, 0)
        if self._read_whole < _READ or not height:  # a header may promise what cannot be read
            hr_HWC = self._read_hr(member)
            self._read_whole += hr_HWC is not None
            return None if hr_HWC is None else hr_HWC.shape[:2]
        size = height - height % self.scale, width - width % self.scale
        return size if self._is_large(member, size) else None

    def _is_large(self, member: Member, size: Size) -> bool:
        if min(size) >= self._least:
            return True
        needed = f"{self._least_is}{self._least}x{self._least}"
        end = "" if self._least_is else ", too small to be measured"
        why = f"{size[1]}x{size[0]} is smaller than {needed}{end}"
        self._leave_out(member.hr, "too small", why)
        return False

    def _lr_of(self, member: Member, hr_HWC: ByteArray) -> ByteArray | None:
        if member.lr is None:
            return self._degrade(hr_HWC) if self._degrade else downscale(hr_HWC, self.scale)
        lr_HWC = self._read(member.lr)
        if lr_HWC is None:
            return None
        if (lr_HWC.shape[0] * self.scale, lr_HWC.shape[1] * self.scale) != hr_HWC.shape[:2]:
            raise UsageError(
                f"{member.lr}: {_size(lr_HWC)} does not fit an HR image of {_size(hr_HWC)} "
                f"at x{self.scale}",
                hint="complete the set, or give a copy of its HR images alone",
            )
        self.published.add(member.name)
        return lr_HWC

    def _read(self, file: Path) -> ByteArray | None:
        try:
            read = read_photo(file)
        except UsageError as error:
            self._leave_out(file, "unreadable", error.what.removeprefix(f"{file}: "))
            return None
        if read.note:
            self._notes.append(f"{self._shown(file)}: {read.note}")
        if pages := read.further_pages:
            page = LeftOut(self._shown(file), "further page")
            self._left_out += [page] * pages
        return read.rgb_HWC

    def _leave_out(self, file: Path, reason: str, why: str) -> None:
        self._left_out.append(LeftOut(self._shown(file), reason, why))

    def _shown(self, file: Path) -> PurePath:
        inside = self.source is not None and file.is_relative_to(self.source)
        return file.relative_to(self.source or "") if inside else PurePath(file.name)


def _find_images(source: Path | None, scale: int, frames_of: int, *, for_tests: bool) -> ImageSet:
    if source is None:
        return _find_samples(for_tests)
    return find_frames(source, frames_of) if frames_of else find_set(source, scale)


def _find_samples(for_tests: bool) -> ImageSet:
    files = sample_tests() if for_tests else sample_photos()
    names = unique_names([PurePath(file.name) for file in files])
    members = (Member(name, file, None) for name, file in zip(names, files, strict=True))
    return ImageSet(tuple(members), ())


def _size(image_HWC: ByteArray) -> str:
    return f"{image_HWC.shape[1]}x{image_HWC.shape[0]}"
