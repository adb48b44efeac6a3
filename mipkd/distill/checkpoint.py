"""Training checkpoints, written atomically and read without running code; the last two are kept."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mipkd.core.errors import StageError

log = logging.getLogger(__name__)

NEWEST = "checkpoint.pt"
_NAMES = (NEWEST, "checkpoint-before.pt")  # the newest first


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` beside the last checkpoint, then replace it.

    Raises:
        StageError: the disk is full or cannot be written; the last checkpoint stays.
    """
    newest, before = (folder / name for name in _NAMES)
    partial = newest.with_name(newest.name + ".partial")
    with report_write_errors(newest):
        try:
            with partial.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            if newest.exists():
                newest.replace(before)
            partial.replace(newest)
        finally:
            partial.unlink(missing_ok=True)


def load(folder: Path, fits: str) -> dict[str, Any] | None:
    """The newest readable checkpoint whose `fits`, a `fingerprint`, is this; None without one."""
    files = [folder / name for name in _NAMES if (folder / name).exists()]
    for file in files:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        # Which of these a damaged file raises depends on the damage.
        except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as e:
            log.warning("skipping a damaged checkpoint, %s: %s", file, str(e).splitlines()[0])
            continue
        if isinstance(state, dict) and state.get("fits") == fits:
            return state
        log.warning("skipping %s: it belongs to another training", file)
    if files:
        log.warning("no checkpoint in %s can be used: training starts again", folder)
    return None


def drop_older(folder: Path) -> None:
    """Remove the checkpoint before the newest."""
    (folder / _NAMES[1]).unlink(missing_ok=True)


def fingerprint(settings: str, *nets: nn.Module | None) -> str:
    """A hash of a training's settings and first weights."""
    digest = hashlib.sha256(settings.encode())
    for net in nets:
        for name, value in (net.state_dict() if net is not None else {}).items():
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn a failed write of `path` into a StageError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch turns a failed write into RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StageError(
            f"distill: cannot write {path}: {reason}",
            hint="free some space and run the same command again: it goes on from the last save",
        ) from error
