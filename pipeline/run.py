"""A run's folder: steps remembered by fingerprint, resumed, locked and journalled.

A step is a stage applied to its inputs. Its key depends on these alone, so that the whole plan is
known before anything runs. It works in `<stage>/<key>.partial/`, renamed to `<key>/` when whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from mipkd.core import codec, memory
from mipkd.core.apart import Limits, Worker
from mipkd.core.errors import MipkdError, StageError, UsageError
from pipeline.stage import I, R, Ref, Stage, call_by_name, differences, digest, fingerprint_step

log = logging.getLogger(__name__)
K = TypeVar("K")
EVIDENCE = "evidence.json"  # of a finished run, in its folder
_HERE = "run:"  # stands for the run's folder in stored records, so that runs can be moved


@dataclass(frozen=True)
class Event:
    """What `plan` prints for a step."""

    stage: str
    label: str
    key: str
    remembered: bool
    why: str
    note: str = ""


@dataclass
class Run:
    """A folder of steps. With `dry` nothing runs and nothing is written."""

    root: Path
    dry: bool = False
    events: list[Event] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)  # "stage label" -> key, in order
    _worker: Worker | None = None

    def remembers(self, stage: Stage[I, R], inputs: I, *, depends_on: object = None) -> bool:
        """Whether such a step has been made."""
        key = digest(fingerprint_step(stage, inputs, depends_on))
        return (self.root / stage.name / key / "record.json").is_file()

    def step(
        self,
        stage: Stage[I, R],
        inputs: I,
        *,
        depends_on: object = None,
        label: str = "",
        note: str = "",
    ) -> Ref[R]:
        """The stage's record: remembered when nothing it depends on has changed, else made.

        `depends_on` enters the key and not the function, such as versions of a runtime. A `note`
        is for who reads the plan.

        Raises:
            MipkdError: the stage's own; the disk being full becomes a StageError.
        """
        asked = fingerprint_step(stage, inputs, depends_on)
        key = digest(asked)
        folder = self.root / stage.name / key
        record = self._load(stage, folder)
        retry = record is not None and stage.retry_if is not None and stage.retry_if(record)
        known = record is not None and not retry
        why = "remembered" if known else self._why(stage, label, asked)
        why = "what was measured cannot be used" if retry else why
        self.events.append(Event(stage.name, label, key, known, why, note))
        self.keys[f"{stage.name} {label}".strip()] = key
        if known:
            self._journal("remembered", stage=stage.name, label=label, key=key)
            return Ref(key, record)
        if self.dry:
            return Ref(key, None)
        return Ref(key, self._make(stage, inputs, folder, asked, label))

    @contextmanager
    def one_process(self) -> Iterator[None]:
        """Inside, the steps that work apart share a process: it is started once."""
        with Worker() as self._worker:
            yield
        self._worker = None

    def receipts(self) -> dict[str, dict[str, Any]]:
        """What each step of this pass noted, by "stage label"."""
        found = {}
        for name, key in self.keys.items():
            file = self.root / name.split()[0] / key / "receipt.json"
            if file.is_file():
                with suppress(OSError, ValueError):  # damaged: as if it were not there
                    found[name] = codec.parse_json(file.read_bytes())
        return found

    def save_record(self, name: str, record: Any) -> None:
        """Store a record in the run's folder, under a name."""
        stored = _swap_prefix(codec.encode(record), str(self.root), _HERE)
        partial = self.root / f"{name}.partial"
        partial.write_text(json.dumps(stored, indent=1))
        partial.replace(self.root / name)

    def load_record(self, name: str, kind: type[K]) -> K:
        """A record that `save_record` stored.

        Raises:
            OSError, ValueError: it is not there, or not of this kind.
        """
        stored = codec.parse_json((self.root / name).read_bytes())
        return codec.decode(kind, _swap_prefix(stored, _HERE, str(self.root)))

    def _make(
        self,
        stage: Stage[I, R],
        inputs: I,
        folder: Path,
        asked: dict[str, Any],
        label: str,
    ) -> R:
        partial = folder.with_name(folder.name + ".partial")
        if not stage.resumes:
            shutil.rmtree(partial, ignore_errors=True)
        self._journal("start", stage=stage.name, label=label, key=folder.name)
        log.info("%s %s", stage.name, label)
        start = time.perf_counter()
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with _noting() as notes:
                record, peak_bytes = self._call(stage, inputs, partial, label)
            receipt = {
                "asked": asked,
                "label": label,
                "seconds": round(time.perf_counter() - start, 3),
                "peak_rss_bytes": peak_bytes,
                "warnings": notes,
                "commit": commit(),
                "program": program_version(),
                "ended": now(),
            }
            (partial / "receipt.json").write_text(json.dumps(receipt, indent=2))
            (partial / "record.json").write_text(
                json.dumps(self._to_stored(record, partial, folder))
            )
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError as error:
            self._journal("failed", stage=stage.name, label=label, what=str(error))
            raise as_stage_error(stage.name, error) from error
        except (Exception, KeyboardInterrupt) as error:
            self._journal("failed", stage=stage.name, label=label, what=repr(error))
            raise
        self._journal("done", stage=stage.name, label=label, seconds=receipt["seconds"])
        made = self._load(stage, folder)
        if made is None:
            raise StageError(f"{stage.name}: {folder} cannot be read again")
        return made

    def _call(self, stage: Stage[I, R], inputs: I, out: Path, label: str) -> tuple[R, int | None]:
        """The record, and the greatest memory of the process that made it."""
        if not stage.apart:
            memory.reset_peak()
            return stage.function(inputs, out=out), memory.peak_bytes()
        with ExitStack() as stack:
            worker = self._worker or stack.enter_context(Worker())
            worker.limits = stage.limits(inputs) if stage.limits else Limits()
            what = f"{stage.name} {label}".strip()
            module = stage.function.__module__
            record: R = worker.call(what, call_by_name, module, stage.name, inputs, out)
            return record, worker.peak_bytes

    def _to_stored(self, record: Any, partial: Path, folder: Path) -> Any:
        place = f"{_HERE}/{folder.relative_to(self.root)}"
        stored = _swap_prefix(codec.encode(record), str(partial), place)
        return _swap_prefix(stored, str(self.root), _HERE)

    def _load(self, stage: Stage[I, R], folder: Path) -> R | None:
        """The record of a step that was made; None where there is none that can be read."""
        file = folder / "record.json"
        if not file.is_file():
            return None
        try:
            stored = codec.parse_json(file.read_bytes())
            record: R = codec.decode(stage.returns, _swap_prefix(stored, _HERE, str(self.root)))
        except (OSError, ValueError) as error:
            log.warning("%s is damaged, the step is made again: %s", file, error)
            return None
        return record

    def _why(self, stage: Stage[I, R], label: str, asked: dict[str, Any]) -> str:
        """What differs from the latest receipt of the same stage and label."""
        folder = self.root / stage.name
        if next(folder.glob(_partial_name(asked)), None):
            return "was interrupted" + (", goes on where it was" if stage.resumes else "")
        receipts = sorted(folder.glob("*/receipt.json"), key=lambda f: f.stat().st_mtime)
        for file in reversed(receipts):
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged
                old = codec.parse_json(file.read_bytes())
                if old["label"] == label and "inputs" not in old["asked"]:
                    return "changed: " + (", ".join(differences(old["asked"], asked)) or "order")
        return "not yet run"

    def _journal(self, event: str, **facts: Any) -> None:
        if self.dry:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"at": now(), "event": event, **facts})
        with (self.root / "journal.jsonl").open("a") as journal:
            journal.write(line + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run out of this folder.

        Raises:
            UsageError: the folder cannot be written, or another run holds it.
        """
        lock = FileLock(self.root / "lock", timeout=0)
        holder = self.root / "lock.process"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            process = holder.read_text() if holder.is_file() else "unknown"
            raise UsageError(
                f"--out: {self.root} is in use by another run (process {process})",
                hint="wait for it, or give this run a folder of its own with --out",
            ) from None
        except OSError as error:
            raise UsageError(
                f"--out: cannot write to {self.root}: {error.strerror}",
                hint="name a folder that you may write to",
            ) from error
        try:
            holder.write_text(str(os.getpid()))
            yield
        finally:
            lock.release()


def _partial_name(asked: dict[str, Any]) -> str:
    """The name of the folder an interrupted step of this key leaves."""
    return digest(asked) + ".partial"


def now() -> str:
    """The time as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def commit() -> str:
    """The git commit of this program's checkout, with "+" when changed; "" outside one."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        dirt = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return ""
    if head.returncode != 0:
        return ""
    return head.stdout.strip() + ("+" if dirt.stdout.strip() else "")


def hash_file(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def program_version() -> str:
    """Of this program; "" when it is not installed."""
    try:
        return package_version("mipkd-pipeline")
    except ModuleNotFoundError:
        return ""


def _swap_prefix(value: Any, old: str, new: str) -> Any:
    """Replace a leading path in every string of a JSON value."""
    if isinstance(value, str):
        inside = value == old or value.startswith(old + "/")
        return new + value[len(old) :] if inside else value
    if isinstance(value, list):
        return [_swap_prefix(v, old, new) for v in value]
    if isinstance(value, dict):
        return {k: _swap_prefix(v, old, new) for k, v in value.items()}
    return value


def as_stage_error(stage: str, error: OSError) -> MipkdError:
    """What a disk or file system refused, as a user should read it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(
            f"{stage}: no space left on the disk ({error.filename or 'while writing'})",
            hint="free some space and run the same command again: finished steps are kept",
        )
    return StageError(f"{stage}: {error.strerror or error} ({error.filename})")


@contextmanager
def _noting() -> Iterator[list[str]]:
    """Collect the messages of WARNING and above that are logged inside."""
    notes: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    handler = Notes(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield notes
    finally:
        logging.getLogger().removeHandler(handler)
