"""LiteRT's `benchmark_model`: how it is started, and what it prints.

After its sources: tflite/tools/benchmark/benchmark_model.cc and benchmark_tflite_model.cc of
https://github.com/google-ai-edge/LiteRT. It prints means and extremes of its runs and no list of
them; of two runs, the first and the last are all. So each start gives two samples, after its own
warm-up: raw ones, as those of other machines.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from mipkd.core.errors import StageError

RUNS = 2  # of a start, whose times are printed both
_IMAGE = "lr"  # any name: it is only held against the others on the command line
_STAT = re.compile(
    r"count=(\d+)(?: first=(\d+))? curr=(\d+)(?:\(all same\))?(?: min=\d+ max=\d+ .*)?"
)
_TIMES = re.compile(r"Inference timings in us: Init: (\d+), First inference: (\d+)")
_MEMORY = re.compile(r"Memory footprint delta .*overall=([\d.]+)|Peak memory .*overall=([\d.]+)")


@dataclass(frozen=True)
class Started:
    """What one start of the program measured."""

    samples_s: tuple[float, ...]
    warmup: int  # runs before them, the first one not counted
    load_s: float
    cold_start_s: float  # the first run
    memory_bytes: int | None  # that the process grew by


def timing_command(program: str, model: str, *, threads: int, warmup_s: float, warmups: int) -> str:
    """A shell command that times two runs on random pixels, at the size that the model states."""
    flags = {
        "graph": model,
        "num_threads": threads,
        "warmup_runs": 1 + warmups,
        "warmup_min_secs": warmup_s,
        "num_runs": RUNS,
        "min_secs": 0,
    }
    return _command(program, flags)


def pixels_command(
    program: str, model: str, lr: str, sr: str, *, shape: Sequence[int], threads: int
) -> str:
    """A shell command that runs an image's bytes once and writes those of the result."""
    flags = {
        "graph": model,
        "num_threads": threads,
        "warmup_runs": 0,
        "warmup_min_secs": -1,  # as its own --dry_run has it: none
        "num_runs": 1,
        "min_secs": -1,
        "input_layer": _IMAGE,
        "input_layer_shape": ",".join(map(str, shape)),
        "input_layer_value_files": f"{_IMAGE}:{lr}",
        "output_filepath": sr,
    }
    return _command(program, flags)


def _command(program: str, flags: dict[str, object]) -> str:
    return shlex.join([program, *(f"--{name}={value}" for name, value in flags.items())])


def parse_timing(printed: str) -> Started:
    """What a `timing_command` printed.

    Raises:
        StageError: that is not what the program prints when all is well.
    """
    runs = [found.groups() for found in _STAT.finditer(printed)]
    times = _TIMES.search(printed)
    if len(runs) != 2 or times is None or int(runs[1][0]) != RUNS:
        raise StageError(
            f"benchmark_model: {why_failed(printed)}",
            hint="take one of LiteRT's releases of 2024 or later",
        )
    (warmed, _, _), (_, first, last) = runs
    memory = _MEMORY.search(printed)
    return Started(
        samples_s=tuple(int(microseconds) / 1e6 for microseconds in (first or last, last)),
        warmup=int(warmed) - 1,
        load_s=int(times[1]) / 1e6,
        cold_start_s=int(times[2]) / 1e6,
        memory_bytes=round(float(memory[1] or memory[2]) * 2**20) if memory else None,
    )


def why_failed(printed: str) -> str:
    """The line that says most of a run that went wrong."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|FATAL)|.*(not found|denied)", line)]
    return (errors or lines[-1:] or ["it printed nothing"])[0][:200]
