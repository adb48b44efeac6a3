"""What work on files of others may take: by default as much as files of that size can need.

A file is first read, or a model first opened and run once on a small image: that takes seconds, and
what does not end then never would. What comes after, on real images, may take far longer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mipkd.core.apart import Limits

_TRIAL_S, _WHOLE_S = 10.0, 900.0
_BYTES_A_SECOND = 5e6  # of a slow disk, and of a graph that a slow processor optimises
# Beside a few hundred MiB of libraries: copies of the weights, and features of a small image.
_TRIAL_GIB, _WHOLE_GIB, _COPIES = 0.5, 4.0, 16


class LimitsConfig(BaseModel):
    """Bounds of reading a checkpoint, and of running a graph, beside what the file's size adds.

    None: a few seconds and 0.5 GiB to read it or to run it once, much more for what comes after.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float | None = Field(None, gt=0, le=1e6)
    memory_gib: float | None = Field(None, gt=0, le=1e6)

    def of(self, *files: Path) -> Limits:
        """Of reading files, or opening the model in them and running it on a small image; from its
        first report on, of running it on others."""
        size = sum(file.stat().st_size for file in files if file.is_file())
        trial = self._limits(size, _TRIAL_S, _TRIAL_GIB)
        return replace(trial, later=self._limits(size, _WHOLE_S, _WHOLE_GIB))

    def _limits(self, size: int, seconds: float, gib: float) -> Limits:
        least = self.memory_gib or gib
        return Limits(
            seconds=(self.seconds or seconds) + size / _BYTES_A_SECOND,
            memory_bytes=int(least * 2**30) + _COPIES * size,
            raise_seconds="--set limits.seconds=N",
            raise_memory="--set limits.memory_gib=N",
        )
