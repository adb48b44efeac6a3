"""The program in a kit: does the one job that it carries, on a device that nobody reaches.

    python3 kit.pyz [-o RESULTS.zip] [--adb [SERIAL]] [--benchmark-model FILE]

With `--adb` the device is an Android phone that is connected to this machine. It works in a folder
beside the results, which an interrupted start leaves for the next one and a finished one removes.
Needs Python 3.10, numpy and the runtime.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mipkd.core import codec
from mipkd.core.errors import MipkdError, MissingError, StageError, UsageError
from mipkd.core.records import Built, TargetInfo
from pipeline.bench.models import gives_pixels, name_of, probe_target
from pipeline.bench.stream_models import streams
from pipeline.machine.base import DeviceConfig, Job, Machine, connect
from pipeline.machine.remote import agent, job_file
from targets.base import ByteArray, find

JOB = "job/"  # the folder in the kit's file
ABOUT = "kit.json"  # what the kit is, for people


def main(arguments: list[str]) -> int:
    """0, or the exit code of what went wrong, with an error line and a hint."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    kit = _own_file()
    try:
        asked = _parse(arguments, kit)
        _measure(kit, asked.out, asked.phone)
    except MipkdError as error:
        return _say_error(error.what, error.hint, error.exit_code)
    except KeyboardInterrupt:
        return _say_error("interrupted", "the same command goes on where it was", 130)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space; the same command goes on where it was" if full else ""
        return _say_error(f"{error.filename or 'system'}: {error.strerror or error}", hint, 5)
    except Exception as error:  # whatever a runtime raises
        return _say_error(f"{type(error).__name__}: {error}", _built_with(kit), 5)
    return 0


def _measure(kit: Path, out: Path, phone: DeviceConfig | None) -> None:
    with zipfile.ZipFile(kit) as packed, _reach(phone) as machine:
        job_id = job_file.hash_of(packed.read(JOB + job_file.JOB))
        work = out.with_name(f"{kit.stem}-{job_id[:8]}.partial")
        about = json.loads(packed.read(ABOUT))
        info = _probe(about["target"], machine)
        goes_on = _unpack(packed, work)
        job = job_file.read_job(work)
        with agent.lock_job(work):
            print(_describe(about, job, out, goes_on), flush=True)
            _forget_others(work, info)
            if machine:
                results = _work_on(machine, info, job, work)
            else:
                results = agent.work(work, _Progress())
            with zipfile.ZipFile(results, "a") as whole:
                whole.write(work / job_file.JOB, job_file.JOB)
    results.replace(out)
    shutil.rmtree(work)
    print(f"done: {out}\nbring it back: mipkd-pipeline collect {out.name} RUN", flush=True)


@contextmanager
def _reach(phone: DeviceConfig | None) -> Iterator[Machine | None]:
    """The phone that is to measure; None without one: this machine is."""
    if phone is None:
        yield None
        return
    with connect(phone) as machine:
        yield machine


def _probe(target: str, machine: Machine | None) -> TargetInfo:
    """The kit's target on the machine that measures.

    Raises:
        MissingError: it is not there, or only simulated.
    """
    info = machine.offers([target])[target] if machine else probe_target(target)
    if info.why_not:
        raise MissingError(f"target {info.target}: {info.why_not}")
    if info.simulated and not info.emulated:
        raise MissingError(
            f"target {info.target}: this machine could only simulate it: nothing is measured",
            hint="run the kit on the device it is meant for",
        )
    return info


def _work_on(machine: Machine, info: TargetInfo, job: job_file.StoredJob, work: Path) -> Path:
    """Have the whole job done by a machine; gives the file of results."""
    numbers = {id(built): number for number, built in enumerate(job.builts)}
    progress, done = _Progress(), work / "done"
    images = [(name, job_file.read_image(work / "images", n)) for n, name in enumerate(job.images)]
    total = len(images) * sum(gives_pixels(built) for built in job.builts)
    files: list[Path] = []

    def keep(built: Built, name: str, sr_HWC: ByteArray) -> None:
        file = done / str(numbers[id(built)]) / f"{job.images.index(name)}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        job_file.write_image(file, sr_HWC)
        files.append(file)
        progress({"done": len(files), "of": total, "what": f"{name}, {name_of(built)}"})

    found = machine.run(Job(info, job.builts, job.settings, images), keep)
    results = work / agent.RESULTS_FILE
    job_file.write_results(results, job_file.StoredResults(job.id, info, found), done)
    return results


def _unpack(packed: zipfile.ZipFile, work: Path) -> bool:
    """Lay the job into `work`; whether an earlier start did so and is gone on with."""
    if (work / job_file.JOB).is_file():
        return True
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to {work.parent}: {error.strerror}", hint="-o FOLDER/results.zip"
        ) from error
    names = [name for name in packed.namelist() if name.startswith(JOB)]
    for name in sorted(names, key=lambda name: name == JOB + job_file.JOB):  # the list comes last
        file = work / name[len(JOB) :]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(packed.read(name))
    return False


def _forget_others(work: Path, info: TargetInfo) -> None:
    """Parts that another machine or another version of the runtime made are no parts of this."""
    now, file = json.dumps(codec.encode(info)), work / "info.json"
    if not file.is_file() or file.read_text() != now:
        shutil.rmtree(work / "done", ignore_errors=True)
        file.write_text(now)


def _built_with(kit: Path) -> str:
    with zipfile.ZipFile(kit) as packed:
        models = json.loads(packed.read(JOB + job_file.JOB))["models"]
    versions = ", ".join(f"{name} {version}" for name, version in models[0]["versions"].items())
    return f"a runtime older than the models may not read them: built with {versions}"


def _describe(about: dict[str, Any], job: job_file.StoredJob, out: Path, goes_on: bool) -> str:
    settings = job.settings
    names = ", ".join(name_of(built) for built in job.builts)
    sizes = ", ".join(f"{width}x{height}" for height, width in settings.sizes)
    each = settings.warmup_s + settings.min_time_s
    least = each * len(job.builts) * len(settings.sizes)
    if streams(find(job.target), settings):
        least += settings.stream.seconds * len(job.builts)
    return "\n".join(
        (
            f"mipkd-pipeline kit of {about['run']}: measures on target {job.target}",
            f"  models: {names}",
            f"  latency at LR {sizes}; then the pixels of {len(job.images)} images",
            f"  takes {max(1.0, least):.0f} s or more; leave the machine alone meanwhile",
            f"  results: {out}",
            "  goes on where it was interrupted" if goes_on else "  Ctrl-C is safe: start it again",
        )
    )


class _Progress:
    """A line for each part that is done."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, fact: dict[str, Any]) -> None:
        spent = time.monotonic() - self._start
        width = len(str(fact["of"]))
        print(f"[{fact['done']:>{width}}/{fact['of']}] {spent:6.1f} s  {fact['what']}", flush=True)


@dataclass(frozen=True)
class _Asked:
    """What the command line asks for."""

    out: Path
    phone: DeviceConfig | None  # that measures; None: this machine


def _parse(arguments: list[str], kit: Path) -> _Asked:
    parser = argparse.ArgumentParser(
        prog=f"python3 {kit.name}",
        description="Measures models of mipkd-pipeline on this machine, or on an Android phone "
        "that is connected to it. Needs numpy and the runtime; sends nothing anywhere.",
    )
    parser.add_argument(
        "-o", metavar="FILE", type=Path, help="results file; default results.zip beside the kit"
    )
    parser.add_argument(
        "--adb", metavar="SERIAL", nargs="?", const="", help="measure on a phone, by adb"
    )
    parser.add_argument(
        "--benchmark-model", metavar="FILE", type=Path, help="LiteRT's program, put on the phone"
    )
    asked = parser.parse_args(arguments)
    if asked.adb is None and asked.benchmark_model:
        raise UsageError("--benchmark-model: there is no phone", hint="add --adb")
    out = asked.o or kit.with_name("results.zip")
    if out.is_dir():
        out = out / "results.zip"
    address = f"adb://{asked.adb}"
    phone = DeviceConfig(address, benchmark_model=asked.benchmark_model)
    return _Asked(Path(out).absolute(), None if asked.adb is None else phone)


def _own_file() -> Path:
    """The kit itself: the file that this module is in."""
    found = next((p for p in Path(__file__).absolute().parents if p.is_file()), None)
    if found is None:
        raise StageError("not started from a kit", hint="python3 kit.pyz")
    return found


def _say_error(what: str, hint: str, code: int) -> int:
    print(f"error: {what}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code
