"""Show and keep the course of a training: progress bar, curves, TensorBoard."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)

_LOG_EVERY_S = 15.0


class Watch:
    """Notes each step in `folder`/metrics.jsonl and tells the user now and then."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.file = folder / "metrics.jsonl"
        self._lines = self.file.open("a")
        self._board = _board(folder)
        self._steps, self._told, self._start = steps, time.monotonic(), time.monotonic()
        self._first: int | None = None
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("distill"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[terms]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("distill", total=steps, terms="")

    def note(
        self, step: int, terms: Mapping[str, float], rate: float, psnr_y_db: float | None
    ) -> None:
        """One finished step; `psnr_y_db` when it was validated."""
        row: dict[str, Any] = {"step": step, "total": sum(terms.values()), **terms, "lr": rate}
        if psnr_y_db is not None:
            row["psnr_y_db"] = psnr_y_db
        self._lines.write(json.dumps(row) + "\n")
        if self._board:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
        self._first = step - 1 if self._first is None else self._first
        shown = " ".join(f"{name} {value:.4g}" for name, value in terms.items())
        if psnr_y_db is not None:
            shown += f"  PSNR-Y {psnr_y_db:.2f} dB"
        if self._bar:
            self._bar.update(self._task, completed=step, terms=shown)
        elif psnr_y_db is not None or time.monotonic() - self._told > _LOG_EVERY_S:
            self._tell(step, shown)

    def _tell(self, step: int, shown: str) -> None:
        self._told = time.monotonic()
        pace = (self._told - self._start) / max(1, step - (self._first or 0))
        left = pace * (self._steps - step)
        log.info("step %d of %d, %.0f s left: %s", step, self._steps, left, shown)

    def place(self) -> int:
        """The length of the curves file, all notes so far written out."""
        self._lines.flush()
        return self.file.stat().st_size

    def close(self) -> None:
        """Write out and stop the bar."""
        self._lines.close()
        if self._board:
            self._board.close()
        if self._bar:
            self._bar.stop()


def _board(folder: Path) -> Any:
    """A TensorBoard writer, or None where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed: curves are in metrics.jsonl alone")
        return None
    return SummaryWriter(str(folder / "tensorboard"))
