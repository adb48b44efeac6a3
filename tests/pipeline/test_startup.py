"""What users and receivers of bundles run needs no module that only POSIX systems have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BLOCKED = ("fcntl", "resource", "termios", "pwd", "grp")
# The commands of the words on stdin, in one process that has none of the modules.
_PROGRAM = f"""
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {BLOCKED}:
            raise ImportError(f"no {{name}} on this system")

for name in {BLOCKED}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocker())
from typer.testing import CliRunner
from pipeline.cli.app import app

said = []
for words in json.load(sys.stdin):
    ended = CliRunner().invoke(app, words)
    if ended.exception and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    said.append([ended.exit_code, ended.stdout, ended.stderr])
print(json.dumps(said))
assert not set({BLOCKED}) & set(sys.modules)
"""


def run_without_posix(*commands: tuple[object, ...]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command."""
    asked = json.dumps([[str(word) for word in words] for words in commands])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=asked, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout.splitlines()[-1])]


def test_every_command_starts_without_posix_modules() -> None:
    names = "run plan train study doctor report history upscale verify bench check kit collect"
    for code, out, err in run_without_posix(*((name, "--help") for name in names.split())):
        assert code == 0, err
        assert "Usage: " in out


def test_what_receivers_run_works_without_posix_modules(finished: Any, tmp_path: Path) -> None:
    bundle, picture = finished.bundle, next((finished.bundle / "golden/lr").glob("*.png"))
    quick = ("--set", "bench.sizes=[[24,32]]", "--target", "cpu")
    found = run_without_posix(
        ("doctor",),
        ("plan", *finished.words[1:], "--out", finished.root),
        ("verify", bundle),
        ("check", bundle),
        ("bench", bundle, *quick),
        ("upscale", bundle, picture, "-o", tmp_path, "--target", "cpu", "--precision", "fp32"),
        ("report", finished.root),
    )
    codes = [code for code, _, _ in found]
    assert codes[:3] == [0, 0, 0], found
    assert codes[3] in (0, 6, 7), found[3]  # its verdict, whichever it is
    assert codes[4] in (0, 7), found[4]
    assert codes[5:] == [0, 0], found[5:]
    doctor, plan, verify, check, bench, _, _ = (out for _, out, _ in found)
    assert "cpu " in doctor
    assert plan.splitlines()[-1].startswith("0 of ")  # its keys do not depend on such modules
    assert verify.endswith("verify: PASS\n")
    assert "check: " in check
    assert "p50 ms" in bench
    assert (tmp_path / picture.name).is_file()
