"""Training checkpoints: written whole, read without running code, the one before kept."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from mipkd.core.errors import StageError

log = logging.getLogger(__name__)

_NAMES = ("checkpoint.pt", "checkpoint-before.pt")  # the newest first


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` beside the last checkpoint and only then take its place.

    Raises:
        StageError: the disk is full or cannot be written; the last checkpoint is untouched.
    """
    newest, before = (folder / name for name in _NAMES)
    partial = newest.with_name(newest.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if newest.exists():
            newest.replace(before)
        partial.replace(newest)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into RuntimeError
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StageError(
            f"distill: cannot write {newest}: {reason}",
            hint="free some space and run the same command again: it goes on from the last save",
        ) from error


def load(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; None when there is none."""
    for name in _NAMES:
        file = folder / name
        if not file.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            log.warning("cannot read %s: %s", file, str(error).splitlines()[0])
            continue
        return state
    return None
