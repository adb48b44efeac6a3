"""A run that is killed at any write, or meets a full disk there, goes on and gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the faults need fork")

# A process of its own, since it forks: one child a fault, then one that runs to the end.
PROGRAM = """
import errno, io, json, os, sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from mipkd.core.errors import MipkdError
from pipeline.ownership import claim
from pipeline.run import Run
from pipeline.run_lock import lock_folder
from pipeline.stage import Ref, stage

FOLDER = Path(sys.argv[1])

@dataclass(frozen=True)
class Nothing: pass

@dataclass(frozen=True)
class After:
    made: Ref[Path]

@stage(version=1)
def first(inputs: Nothing, *, out: Path) -> Path:
    (out / "a.txt").write_text("a")
    return out / "a.txt"

@stage(version=1)
def second(inputs: After, *, out: Path) -> Path:
    (out / "b.txt").write_text(inputs.made.value.read_text() * 2)
    return out / "b.txt"

def run(root):
    claim(root, force=False)
    with lock_folder(root):
        this = Run(root)
        made = this.step(second, After(this.step(first, Nothing()))).value
        this.save_record("evidence.json", {"b": made.read_text()})
        with suppress(FileNotFoundError):
            made.read_text()

def break_at(number, kill):
    count = [0]
    def breaking(call):
        def called(*args, **options):
            count[0] += 1
            if count[0] > number:
                if kill:
                    os._exit(9)
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*args, **options)
        return called
    for name in ("fsync", "mkdir", "rename", "replace"):
        setattr(os, name, breaking(getattr(os, name)))
    opened = io.open
    io.open = lambda name, mode="r", *a, **o: (
        breaking(opened) if mode != "r" and mode != "rb" else opened)(name, mode, *a, **o)
    return count

def forked(work):
    child = os.fork()
    if not child:
        code = 70
        try:
            work()
            code = 0
        except (MipkdError, OSError) as error:
            code = 5
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def survive(kill):
    codes = []
    for number in range(kill, 400, 3):
        root = FOLDER / f"{kill} {number}"
        codes.append(forked(lambda: (break_at(number, kill), run(root))))
        assert forked(lambda: run(root)) == 0, number
        kept = sorted(f.name for f in root.rglob("*"))
        assert not [name for name in kept if "partial" in name or "kept" in name], (number, kept)
        assert Run(root).load_record("evidence.json", dict[str, str]) == {"b": "aa"}, number
        for line in (root / "journal.jsonl").read_text().splitlines():
            json.loads(line)
        if codes[-1] == 0:
            return codes

print(json.dumps([survive(True), survive(False)]))
"""


def test_a_fault_at_any_write_is_survived(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for codes, code in zip(json.loads(done.stdout), (9, 5), strict=True):
        assert len(codes) > 10
        assert codes[-1] == 0
        assert set(codes[:-1]) == {code}
