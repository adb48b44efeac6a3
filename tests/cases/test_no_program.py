"""Commands that only look start no program but our worker, and write nothing but outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

# Python tells of every program that it starts and of every file that it opens to write.
_TRACED = """
import json, os, sys
def hook(event, args):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
        with open(os.environ["TRACE"], "a") as f:
            f.write(json.dumps([event, str(args[0]) if args else ""]) + "\\n")
sys.addaudithook(hook)
from pipeline.cli.app import main
main()
"""
TEACHER = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
QUICK = (
    "--demo-data",
    *("--set", "quantize.search=false", "--set", "calibrate.count=8", "--set", "calibrate.size=32"),
    *("--set", "bench.sizes=[[32,32]]", "--set", "bench.min_time_s=0.05"),
    *("--set", "bench.max_busy=1", "--set", "bench.max_drift=9"),
)


def traced(home: Path, *words: object) -> tuple[int, list[str], set[str]]:
    """Exit code, programs that were started, files that are new or changed below `home`."""
    trace = home.parent / "trace.jsonl"
    trace.write_text("")
    settings = {**os.environ, "TRACE": str(trace), "HOME": str(home), "TMPDIR": str(home / "tmp")}
    settings |= {"XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    before = stamps(home)
    said = subprocess.run(
        [sys.executable, "-c", _TRACED, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=home,
        env={**settings, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert "Traceback" not in said.stderr, said.stderr
    started = [json.loads(line)[1] for line in trace.read_text().splitlines()]
    after = stamps(home)
    return said.returncode, started, {name for name in after if after[name] != before.get(name)}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in found}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a finished run in it, which started programs and wrote files."""
    home = tmp_path_factory.mktemp("user") / "home"
    (home / "tmp").mkdir(parents=True)
    code, _, written = traced(
        home,
        *("run", "--model", TEACHER, "--target", "cpu", "--precision", "fp32,int8", *QUICK),
        *("--out", home / "run", "--set", "gates.max_mean_drop_db=9"),
    )
    assert code in (0, 6, 7)
    assert "run/bundle/manifest.json" in written
    return home


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "--model", TEACHER, "--target", "cpu", "--out", "other", *QUICK),
        ("plan", "--model", TEACHER, "--target", "cpu", "--out", "run", *QUICK),
        ("verify", "run/bundle"),
        ("check", "run/bundle", "--baseline", "run/bundle", "--set", "bench.min_time_s=0.05"),
        ("doctor", TEACHER),
    ],
    ids=["plan", "plan-again", "verify", "check", "doctor"],
)
def test_a_command_that_looks_starts_and_writes_nothing(
    home: Path, words: tuple[object, ...]
) -> None:
    code, started, written = traced(home, *words)
    assert code in (0, 6, 7)
    assert started == []
    # A plan keeps what it has timed, so that the next one is quick.
    kept = {"cache/mipkd-pipeline/timings/timings.jsonl"} if words[0] == "plan" else set()
    assert written <= kept
