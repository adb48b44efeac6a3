"""A run's folder: steps remembered by fingerprint, resumed, locked and journalled.

A step is a stage applied to its inputs. Its key depends on these alone, so that the whole plan is
known before anything runs. It works in `<stage>/<key>.partial/`, renamed to `<key>/` when whole.
Before it is used again its files are held against its receipt.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from mipkd.core import durable, memory
from mipkd.core.apart import Limits, Worker
from mipkd.core.errors import MipkdError, StageError, UsageError
from pipeline import receipts
from pipeline.causes import Cause, find_causes
from pipeline.origin import commit, noting, now, program_version
from pipeline.receipts import Receipt
from pipeline.stage import (
    Foreseen,
    I,
    R,
    Ref,
    Stage,
    call_by_name,
    differences,
    digest,
    fingerprint_step,
    refs_of,
)
from pipeline.stored import read_record, write_record

log = logging.getLogger(__name__)
K = TypeVar("K")
EVIDENCE = "evidence.json"  # of a finished run, in its folder
JOURNAL = "journal.jsonl"
_CHANGED = "changed: "  # before what differs in a step's key


@dataclass(frozen=True)
class Event:
    """What `plan` prints for a step."""

    stage: str
    label: str
    key: str
    remembered: bool
    why: str
    note: str = ""
    causes: tuple[Cause, ...] = ()  # what the user changed since it was last made
    inputs: Any = field(default=None, compare=False, repr=False)
    record: Any = field(default=None, compare=False, repr=False)  # None: only planned, or failed


@dataclass(frozen=True)
class _Kept(Generic[R]):
    """A step that was made and is as it was."""

    record: R
    receipt: Receipt


@dataclass
class Run:
    """A folder of steps. With `dry` nothing is written there, and only what looks at a user's files
    runs, in the folder `scratch` where there is one."""

    root: Path
    dry: bool = False
    scratch: Path | None = None
    events: list[Event] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)  # "stage label" -> key, in order
    _worker: Worker | None = None
    _planned: set[str] = field(default_factory=set)  # keys of steps that a dry run has said already
    _causes: dict[str, tuple[Cause, ...]] = field(default_factory=dict)  # by key
    _checked: dict[Path, tuple[_Kept[Any] | None, str]] = field(default_factory=dict)

    def remembers(self, stage: Stage[I, R], inputs: I, *, depends_on: object = None) -> bool:
        """Whether such a step has been made, and is as it was; or is planned already."""
        key = digest(fingerprint_step(stage, inputs, depends_on))
        return (
            key in self._planned
            or self._find(stage, inputs, self.root / stage.name / key)[0] is not None
        )

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
        if key in self._planned:
            return Ref(key, None)
        folder = self.root / stage.name / key
        kept, spoilt = self._find(stage, inputs, folder)
        retry = kept is not None and stage.retry_if is not None and stage.retry_if(kept.record)
        changed = [] if kept or spoilt else self._changes(stage, label, asked)
        why = self._unless_planned(inputs) if kept else spoilt or self._why(stage, asked, changed)
        why = "what was measured cannot be used" if retry else why
        known = kept is not None and not retry
        causes = find_causes(stage.name, label, inputs, changed, self._causes)
        self._causes[key] = causes
        self.events.append(Event(stage.name, label, key, known, why, note, causes, inputs))
        self.keys[f"{stage.name} {label}".strip()] = key
        if kept and not retry:
            self._journal("remembered", stage=stage.name, label=label, key=key)
            self._know(kept.record)
            return Ref(key, kept.record, kept.receipt.contents)
        if self.dry:
            if not (stage.looks and self.scratch):
                self._planned.add(key)
                return Ref(key, None)
            looked = self._look(stage, inputs, self.scratch / stage.name / key, asked, label)
            self._know(looked.record)
            return Ref(key, looked.record, looked.receipt.contents)
        made = self._make(stage, inputs, folder, asked, label)
        self._know(made.record)
        return Ref(key, made.record, made.receipt.contents)

    def foresee(self, stage: Stage[I, R], work: Foreseen, *, note: str) -> None:
        """Say in a plan that more of a stage follows, depending on what its steps come to."""
        self.events.append(Event(stage.name, "", "", False, "", note, inputs=work))

    def _know(self, record: Any) -> None:
        """Note what the latest step made."""
        self.events[-1] = replace(self.events[-1], record=record)

    @contextmanager
    def one_process(self) -> Iterator[None]:
        """Inside, the steps that work apart share a process: it is started once."""
        with Worker() as self._worker:
            yield
        self._worker = None

    def receipts(self) -> dict[str, Receipt]:
        """What each step of this pass noted, by "stage label"."""
        found = {}
        for name, key in self.keys.items():
            with suppress(OSError, ValueError):  # not made, or damaged: as if it were not there
                found[name] = receipts.read(self.root / name.split()[0] / key)
        return found

    def save_record(self, name: str, record: Any) -> None:
        """Store a record in the run's folder, under a name."""
        write_record(self.root / name, record, self.root)

    def load_record(self, name: str, kind: type[K]) -> K:
        """A record that `save_record` stored.

        Raises:
            OSError, ValueError: it is not there, or not of this kind.
        """
        record: K = read_record(self.root / name, kind, self.root)
        return record

    def _make(
        self,
        stage: Stage[I, R],
        inputs: I,
        folder: Path,
        asked: dict[str, Any],
        label: str,
    ) -> _Kept[R]:
        partial = folder.with_name(folder.name + ".partial")
        if os.path.lexists(folder.parent) and not folder.parent.is_dir():
            raise UsageError(
                f"--out: {folder.parent} is no folder, and steps go there",
                hint="move it away, or name another folder with --out",
            )
        if not stage.resumes:
            shutil.rmtree(partial, ignore_errors=True)
        self._journal("start", stage=stage.name, label=label, key=folder.name)
        log.info("%s %s", stage.name, label)
        start = time.perf_counter()
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with noting() as notes:
                record, peak_bytes = self._call(stage, inputs, partial, label)
            receipt = Receipt(
                asked,
                label,
                seconds=round(time.perf_counter() - start, 3),
                peak_rss_bytes=peak_bytes,
                warnings=tuple(notes),
                commit=commit(),
                program=program_version(),
                ended=now(),
                made_from=_contents_of(inputs),
            )
            self._keep(record, receipt, partial, folder)
        except OSError as error:
            with suppress(OSError):  # the disk may be full
                self._journal("failed", stage=stage.name, label=label, what=str(error))
            raise as_stage_error(stage.name, error) from error
        except (Exception, KeyboardInterrupt) as error:
            self._journal("failed", stage=stage.name, label=label, what=repr(error))
            raise
        self._journal("done", stage=stage.name, label=label, seconds=receipt.seconds)
        self._checked.pop(folder, None)
        made, why = self._find(stage, inputs, folder)
        if made is None:
            raise StageError(f"{stage.name}: {folder} cannot be read again: {why}")
        return made

    def _look(
        self, stage: Stage[I, R], inputs: I, folder: Path, asked: dict[str, Any], label: str
    ) -> _Kept[R]:
        """A step made for a plan alone, of which its time is noted and not by what it was made."""
        log.info("%s %s", stage.name, label)
        start = time.perf_counter()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            record, peak_bytes = self._call(stage, inputs, folder, label)
            write_record(folder / receipts.RECORD, record, folder.parents[1])
            seconds = round(time.perf_counter() - start, 3)
            receipt = Receipt(asked, label, seconds=seconds, peak_rss_bytes=peak_bytes)
            receipt = receipts.seal(receipt, folder)
            receipts.write(receipt, folder)
        except OSError as error:
            raise as_stage_error(stage.name, error) from error
        return _Kept(record, receipt)

    def _keep(self, record: Any, receipt: Receipt, partial: Path, folder: Path) -> None:
        """Store record and receipt of a step, and give its folder its name."""
        write_record(partial / receipts.RECORD, record, self.root, (partial, folder))
        receipts.write(receipts.seal(receipt, partial), partial)
        durable.sync_tree(partial)
        durable.replace_folder(folder, partial, receipts.has_others)

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

    def _find(self, stage: Stage[I, R], inputs: I, folder: Path) -> tuple[_Kept[R] | None, str]:
        """A step that was made; None where it was not, or why it cannot be used."""
        if folder not in self._checked:
            self._checked[folder] = self._check(stage, folder)
            if (spoilt := self._checked[folder][1]) and not self.dry:
                log.warning("%s/%s, the step is made again", folder, spoilt)
        kept, why = self._checked[folder]
        if kept is None:
            return None, why
        now, then = _contents_of(inputs), kept.receipt.made_from
        if changed := next((key for key in now if then.get(key, now[key]) != now[key]), None):
            names = (name for name, key in self.keys.items() if key == changed)
            return None, f"changed: what {next(names, changed)} made"
        if not self.dry and now.keys() - then.keys():  # of a version that did not note it
            kept = replace(kept, receipt=replace(kept.receipt, made_from=now | then))
            self._renew(kept, folder)
        return kept, ""

    def _check(self, stage: Stage[I, R], folder: Path) -> tuple[_Kept[R] | None, str]:
        """A step's record, if it is readable and every file is as the step left it."""
        if not folder.is_dir():
            return None, ""
        file = folder / receipts.RECORD
        try:
            record: R = read_record(file, stage.returns, self.root)
            file = folder / receipts.RECEIPT
            receipt = receipts.read(folder)
            changed, renewed = receipts.find_change(folder, receipt)
            if changed:
                return None, f"{changed} was changed since it was made"
            if renewed.files is None and not self.dry:  # of a version that did not note them
                renewed = receipts.seal(renewed, folder)
        except (OSError, ValueError) as error:
            log.debug("%s: %s", file, error)
            return None, f"{file.name} is damaged"
        kept = _Kept(record, renewed)
        if renewed != receipt:
            self._renew(kept, folder)
        return kept, ""

    def _renew(self, kept: _Kept[Any], folder: Path) -> None:
        self._checked[folder] = kept, ""
        if not self.dry:
            with suppress(OSError):  # it is noted the next time
                receipts.write(kept.receipt, folder)

    def _unless_planned(self, inputs: object) -> str:
        """Why a step is remembered: for certain only where what it is made from is there."""
        planned = {ref.key for ref in refs_of(inputs) if ref.key and ref.record is None}
        names = ", ".join(name for name, key in self.keys.items() if key in planned)
        return f"remembered, if {names} comes out as before" if names else "remembered"

    def _why(self, stage: Stage[I, R], asked: dict[str, Any], changed: Sequence[str]) -> str:
        folder = self.root / stage.name
        if next(folder.glob(_partial_name(asked)), None):
            return "was interrupted" + (", goes on where it was" if stage.resumes else "")
        return _CHANGED + ", ".join(changed) if changed else "not yet run"

    def _changes(self, stage: Stage[I, R], label: str, asked: dict[str, Any]) -> list[str]:
        """What differs from the latest receipt of the same stage and label; nothing without one."""
        folder = self.root / stage.name
        files = sorted(folder.glob(f"*/{receipts.RECEIPT}"), key=lambda f: f.stat().st_mtime)
        for file in reversed(files):
            with suppress(OSError, ValueError):  # damaged
                old = receipts.read(file.parent)
                if old.label == label and "inputs" not in old.asked:
                    return differences(old.asked, asked) or ["order"]
        return []

    def _journal(self, event: str, **facts: Any) -> None:
        if self.dry:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"at": now(), "event": event, **facts})
        durable.append_lines(self.root / JOURNAL, [line])


def _partial_name(asked: dict[str, Any]) -> str:
    """The name of the folder an interrupted step of this key leaves."""
    return digest(asked) + ".partial"


def _contents_of(inputs: object) -> dict[str, str]:
    """What the steps have made that these inputs come from, by key."""
    return {ref.key: ref.contents for ref in refs_of(inputs) if ref.contents}


def as_stage_error(stage: str, error: OSError) -> MipkdError:
    """What a disk or file system refused, as a user should read it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(
            f"{stage}: no space left on the disk ({error.filename or 'while writing'})",
            hint="free some space and run the same command again: finished steps are kept",
        )
    return StageError(f"{stage}: {error.strerror or error} ({error.filename})")
