"""Native code that crashes is a row of the report; the other targets go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from mipkd.core.images import resize_bicubic, write_png

ROOT = Path(__file__).resolve().parents[2]
START = "from pipeline.cli import main; main()"
PLUGIN = """
import os, signal
from targets.cpu import Cpu
from targets.base import Feature

class Shaky(Cpu):
    name = "shaky"
    features = frozenset({Feature.FLOAT_SEARCH})

    def tuner(self, request):
        if "tuner" == "WHERE":
            os.kill(os.getpid(), signal.SIGKILL)

    def build(self, request):
        if request.precision == "int8":
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().build(request)

TARGET = Shaky()
"""
QUICK = (
    *("--target", "shaky,cpu", "--precision", "fp32,int8", "--set", "quantize.search=SEARCH"),
    *("--set", "calibrate.count=4", "--set", "calibrate.size=16", "--set", "quantize.crop=32"),
    *("--set", "quantize.photos=2", "--set", "quantize.pages=1", "--set", "quantize.size=[16,16]"),
    *("--set", "bench.sizes=[[16, 16]]", "--set", "bench.min_time_s=0.05"),
    *("--set", "bench.warmup_s=0.01", "--set", "bench.max_drift=9", "--set", "bench.max_busy=1"),
    *("--set", "gates.max_mean_drop_db=off", "--set", "gates.max_worst_drop_db=off"),
    *("--set", "gates.max_channel_shift=off"),  # so few patches calibrate nothing well
)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("where", "search", "says"),
    [
        ("build", "false", "build shaky student int8: its process died of SIGSEGV"),
        ("tuner", "true", "search shaky: its process died of SIGKILL"),
    ],
)
def test_a_crash_is_a_row_and_the_rest_goes_on(
    where: str, search: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "shaky.py").write_text(PLUGIN.replace("WHERE", where))
    model = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
    words = [word.replace("SEARCH", search) for word in QUICK]
    for name in ("photos", "shown"):
        (tmp_path / name).mkdir()
        rng = np.random.default_rng(len(name))
        for index in range(2):
            coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
            write_png(tmp_path / name / f"{index}.png", resize_bicubic(coarse, (96, 112)))
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            START,
            "run",
            "--model",
            model,
            "--data",
            "photos",
            "--val",
            "shown",
            "--set",
            "identify.accept_worse_than_bicubic=true",
            "--out",
            "run",
            *words,
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == 7, done.stderr
    results = json.loads((tmp_path / "run/report/latest/results.json").read_text())
    (failure,) = results["failures"]
    assert (failure["target"], failure["precision"]) == ("shaky", "int8")
    assert says in failure["what"]
    assert ("--target" if where == "build" else "free some memory") in failure["hint"]
    rows = {(m["target"], m["precision"]) for m in results["measurements"]}
    assert rows >= {("shaky", "fp32"), ("cpu", "fp32"), ("cpu", "int8")}
