"""The program on a device: says what it can run, and does a job part by part.

    agent probe TARGET...        one JSON object on stdout
    agent work FOLDER            does the job in FOLDER; a JSON line on stdout for each part

It ends itself, and all that it started, when nobody writes to its stdin any more: whoever
started it has gone. Parts that are done stay in FOLDER, and the next start goes on after them.
Needs Python 3.10, numpy and the runtime.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mipkd.core import codec
from mipkd.core.errors import MipkdError, MissingError, StageError
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built
from pipeline.bench.models import (
    gives_pixels,
    join_parts,
    make_pixels,
    name_of,
    probe_target,
    time_models,
)
from pipeline.bench.stream_models import stream_models, streams
from pipeline.machine.remote import job_file
from pipeline.machine.remote.remote_script import wait_for_lock
from targets.base import ByteArray, Target, find

PATIENCE_S = 30.0  # without a word from the other side
RESULTS_FILE = "results.zip"

Parts = tuple[Measurement, ...]  # one a model
Say = Callable[[dict[str, Any]], None]


def work(folder: Path, say: Say) -> Path:
    """Do what is left of the job in `folder`; gives the file of results.

    Raises:
        UsageError: the job is damaged.
        MissingError: this machine cannot run its target.
    """
    job = job_file.read_job(folder)
    info = probe_target(job.target)
    if info.why_not:
        raise MissingError(f"target {job.target}: {info.why_not}")
    target = find(job.target)
    done = folder / "done"
    done.mkdir(exist_ok=True)
    timed = 0 if info.simulated else len(job.settings.sizes)
    streamed = len(job.builts) if streams(target, job.settings) else 0
    total = timed + streamed + (len(job.images) if target.makes_pixels else 0)
    progress = _Progress(say, total)
    parts = list(_timings(job, target, done, progress)) if timed else []
    parts = parts or [time_models(target, job.builts, job.settings)]  # nothing is timed
    if streamed:
        parts.append(tuple(_streams(job, target, done, progress)))
    _pixels(job, target, folder, progress)
    found = join_parts(parts)
    stored = job_file.StoredResults(job.id, info, found)
    job_file.write_results(folder / RESULTS_FILE, stored, done)
    return folder / RESULTS_FILE


def _timings(
    job: job_file.StoredJob, target: Target, done: Path, progress: _Progress
) -> Iterator[Parts]:
    for size in job.settings.sizes:
        file = done / f"latency-{size[0]}x{size[1]}.json"
        settings = replace(job.settings, sizes=(size,))
        found = _once(file, partial(time_models, target, job.builts, settings))
        progress.step(f"latency at LR {size[1]}x{size[0]}")
        yield found


def _streams(
    job: job_file.StoredJob, target: Target, done: Path, progress: _Progress
) -> Iterator[Measurement]:
    """One model at a time: a stream may take ten minutes."""
    for number, built in enumerate(job.builts):
        measure = partial(stream_models, target, [built], job.settings)
        (found,) = _once(done / f"stream-{number}.json", measure)
        progress.step(f"frames of a stream, {name_of(built)}")
        yield found


def _once(file: Path, measure: Callable[[], Parts]) -> Parts:
    """What `measure` gives, or gave when it was started before."""
    if not file.is_file():
        unfinished = file.with_suffix(".partial")
        unfinished.write_text(json.dumps(codec.encode(measure())))
        unfinished.replace(file)
    return codec.decode(Parts, json.loads(file.read_text()))


def _pixels(job: job_file.StoredJob, target: Target, folder: Path, progress: _Progress) -> None:
    """Outputs lie in `done`/M/N.npy: number of the model, number of the image."""
    numbers = {name: number for number, name in enumerate(job.images)}
    folders = {id(b): folder / "done" / str(number) for number, b in enumerate(job.builts)}
    makers = [folders[id(b)] for b in job.builts if gives_pixels(b)]

    def left() -> Iterator[tuple[str, ByteArray]]:
        for name, number in numbers.items():
            if not all((outputs / f"{number}.npy").is_file() for outputs in makers):
                yield name, job_file.read_image(folder / "images", number)
            progress.step(name)

    def keep(built: Built, name: str, sr_HWC: ByteArray) -> None:
        outputs = folders[id(built)]
        outputs.mkdir(exist_ok=True)
        job_file.write_image(outputs / f"{numbers[name]}.npy", sr_HWC)

    make_pixels(target, job.builts, left(), keep)


class _Progress:
    """Says how many of the parts are done."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self._total, self._done = say, total, 0

    def step(self, what: str) -> None:
        self._done += 1
        self._say({"done": self._done, "of": self._total, "what": what})


@contextmanager
def lock_job(folder: Path) -> Iterator[None]:
    """Keep a second agent out of a job; one whose sender has gone is given time to end.

    Raises:
        StageError: another one is at work.
    """
    with (folder / "lock").open("a") as lock:
        if not wait_for_lock(lock, PATIENCE_S + 5):
            raise StageError(
                f"{folder}: another process is doing this job",
                hint="wait for it, or end it on the device",
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _end_when_left() -> None:
    """End this process and its children when stdin is closed or silent."""
    os.setpgrp()

    def listen() -> None:
        while select.select([0], [], [], PATIENCE_S)[0] and os.read(0, 1024):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=listen, name="listen", daemon=True).start()


def _say(fact: dict[str, Any]) -> None:
    print(json.dumps(fact), flush=True)


def main(arguments: list[str]) -> int:
    """0, or the exit code of what went wrong, which one JSON object with "error" says."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # what matters is in the notes
    try:
        _end_when_left()
        if arguments[0] == "probe":
            _say({"targets": {n: codec.encode(probe_target(n)) for n in arguments[1:]}})
        else:
            folder = Path(arguments[1])
            _say({"pid": os.getpid()})
            with lock_job(folder):
                file = work(folder, _say)
            _say({"results": str(file), "sha256": job_file.hash_of(file.read_bytes())})
    except MipkdError as error:
        _say({"error": error.what, "hint": error.hint, "exit_code": error.exit_code})
        return error.exit_code
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space on the device" if full else ""
        _say({"error": f"{error.filename or 'system'}: {error.strerror or error}", "hint": hint})
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
