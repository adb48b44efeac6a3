"""Show and record a training's progress: progress bar, curves, TensorBoard."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mipkd.core.texts import say_duration
from mipkd.distill.checkpoint import report_write_errors

log = logging.getLogger(__name__)

_LOG_EVERY_S = 15.0
_BOARD_POINTS = 5000  # TensorBoard's files would grow large; metrics.jsonl has every step


def curves_file(folder: Path) -> Path:
    """The curves of a training in `folder`: JSON lines, one a step."""
    return folder / "metrics.jsonl"


class ProgressLog:
    """Writes each step to the curves file and shows the user the newest now and then.

    The file holds no times: a resumed training writes the same as an uninterrupted one.
    """

    def __init__(self, folder: Path, *, step: int, steps: int) -> None:
        self.file = curves_file(folder)
        with report_write_errors(self.file):
            _truncate_after(self.file, step)
            self._lines = self.file.open("a")
        self._board = _open_board(folder, step)
        self._first, self._steps = step, steps
        self._last_log = self._start = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("distill"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("distill", total=steps, completed=step, shown="")

    def log_step(
        self,
        step: int,
        terms: Mapping[str, float],
        rate: float,
        psnr_y_db: float | None,
        health: Mapping[str, float],
    ) -> None:
        """Record a finished step, or step 0 without terms; with PSNR-Y and health figures if it
        was validated.

        Raises:
            StageError: the disk is full.
        """
        row: dict[str, Any] = {"step": step}
        if terms:
            row |= {"total": sum(terms.values()), **terms, "lr": rate}
        if psnr_y_db is not None:
            row["psnr_y_db"] = psnr_y_db
        row |= health
        with report_write_errors(self.file):
            self._lines.write(json.dumps(row) + "\n")
            self._lines.flush()
            if self._board and (psnr_y_db is not None or step % self._board_period == 0):
                for name, value in row.items():
                    if name != "step":
                        self._board.add_scalar(name, value, step)
        self._show(step, {**terms, **health}, psnr_y_db)

    @property
    def _board_period(self) -> int:
        return -(-self._steps // _BOARD_POINTS)

    def _show(self, step: int, figures: Mapping[str, float], psnr_y_db: float | None) -> None:
        shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if psnr_y_db is not None:
            shown += f"  PSNR-Y {psnr_y_db:.2f} dB"
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=step, shown=escape(shown))
        elif psnr_y_db is not None or now - self._last_log > _LOG_EVERY_S:
            self._last_log = now
            done = step - self._first
            left = ""
            if done:
                seconds = (now - self._start) / done * (self._steps - step)
                left = f", {say_duration(seconds)} left"
            log.info("step %d of %d%s: %s", step, self._steps, left, shown.strip())

    def close(self) -> None:
        """Stop the bar and close the files; `log_step` has reported a full disk already."""
        if self._bar:
            self._bar.stop()
        with suppress(OSError):
            self._lines.close()
        if self._board:
            with suppress(OSError):
                self._board.close()


def _truncate_after(file: Path, step: int) -> None:
    """Drop the rows after `step` and an incomplete last one, which a killed training left."""
    if not file.exists():
        return
    lines = []
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or row["step"] > step or step == 0:
            break
        lines.append(line)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(b"".join(lines))
    partial.replace(file)


def _open_board(folder: Path, step: int) -> Any:
    """A TensorBoard writer that drops the points after `step`; None without the extra `train`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its imports
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.debug("tensorboard is not installed: curves are in metrics.jsonl only")
        return None
    with report_write_errors(folder / "tensorboard"):
        return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else 0)
