"""Which of the folders that were given are LR frames without truth, and what cannot be done so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mipkd.core.errors import UsageError
from mipkd.core.lr_frames import has_pairs, is_lr_only
from mipkd.core.names import printable
from pipeline.config import Config

log = logging.getLogger(__name__)

_NO_TRUTH = "LR frames without truth"


@dataclass(frozen=True)
class LrOnly:
    """Whether there are LR frames alone to train on, and to validate on."""

    data: bool = False
    val: bool = False


def find_lr_only(config: Config) -> LrOnly:
    """As was asked for by `--lr-only`, else by the names of the folders.

    Raises:
        UsageError: no such folder, or it was asked for and there are no such folders.
    """
    found = LrOnly(_is_data_lr_only(config), is_val_lr_only(config, config.val))
    asked, given = config.lr_only, {"data": found.data, "val": found.val}
    if asked and not (any(given.values()) if asked is True else given[asked]):
        where = "--data and --val" if asked is True else f"--{asked}"
        raise UsageError(
            f"--lr-only: no effect: {where}: no folder of LR frames without their HR images",
            hint="give the folder of the frames, or leave it out",
        )
    return found


def is_val_lr_only(config: Config, folder: Path | None) -> bool:
    """The same of one test set; one in which LR images have their HR ones keeps its truth."""
    asked = config.lr_only
    if folder is None or asked in (False, "data"):
        return False
    if asked is True:
        return not has_pairs(folder)
    return asked == "val" or is_lr_only(folder)


def _is_data_lr_only(config: Config) -> bool:
    asked, folder = config.lr_only, config.data
    if folder is None or asked in (False, "val"):
        return False
    return asked in (True, "data") or is_lr_only(folder)


def check_lr_only(config: Config, found: LrOnly) -> None:
    """Refuse what frames without truth cannot do, and say how they are used.

    Raises:
        UsageError: nothing is left to learn from or to compare by, or a setting has no effect.
    """
    if found.data and not config.model and not config.has_own_teacher:
        raise UsageError(
            f"--data: {printable(config.data or '')}: {_NO_TRUTH} teach nothing without a teacher",
            hint="--teacher FILE; or HR photos: --no-lr-only takes these as such",
        )
    if found.data and config.degradation.chain != "off":
        raise UsageError(
            f"degradation.chain: no effect: --data gives {_NO_TRUTH}, which are degraded already",
            hint="leave it out, or give HR photos",
        )
    if found.val and not config.teacher and config.compare:
        raise UsageError(
            f"--compare: --val gives {_NO_TRUTH}, and without a teacher nobody can tell which "
            "student is better",
            hint="give --teacher, or test images with their HR ones",
        )
    if found.data:
        what = "calibrates" if config.model else "learns"
        say = "%s: %s: the student %s on them as they are; --no-lr-only takes them as HR photos"
        log.info(say, printable(config.data or ""), _NO_TRUTH, what)
    if found.val:
        whose = "teacher's" if config.teacher else "student's own FP32"
        say = "%s: %s: quality is measured to the %s image; --set lr_only=data takes them as HR"
        log.info(say, printable(config.val or ""), _NO_TRUTH, whose)


def check_without_teacher(config: Config, found: LrOnly) -> None:
    """Refuse frames where a net learns from photos alone.

    Raises:
        UsageError: some were given.
    """
    for option, lacks in (("data", found.data), ("val", found.val)):
        if lacks:
            raise UsageError(
                f"--{option}: {printable(getattr(config, option))}: {_NO_TRUTH}, and without a "
                "teacher nothing stands for it",
                hint="give HR photos; a student learns from frames by run --teacher FILE",
            )


def find_lr_only_tests(config: Config, tests: Sequence[Path | None]) -> tuple[bool, ...]:
    """Which of a study's test sets are LR frames without truth."""
    return tuple(is_val_lr_only(config, one) for one in tests)
