"""Two processes on one training: the same curve as one, resumed by any number of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.images import resize_bicubic, write_png
from mipkd.distill.teacher import save

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `train` of photos and one, `shown`, of test images."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("train", "shown"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for name in ("train/0", "train/1", "train/2", "shown/0"):
        coarse = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        write_png(folder / f"{name}.png", resize_bicubic(coarse, (96, 88)))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    hyper = edsr.Hyper(2, channels=12, blocks=4)
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, file, licence="")
    return file


def started(count: int, command: list[str], out: Path) -> subprocess.Popen[str]:
    """The command in one process, or in several that torchrun starts."""
    code = "from pipeline.cli import main; main()"
    program = [sys.executable, "-c", code]
    if count > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        program = [*launcher, "--standalone", "--no-python", *program]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    return subprocess.Popen(
        [*program, *command, "--out", str(out)],
        cwd=out.parent,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def studied(
    teacher: Path, photos: Path, steps: int, methods: str = "mipkd", **settings: Any
) -> list[str]:
    settings = {"batch": 4, "patch": 16, "precision": "'fp32'", "validate_every": 25, **settings}
    sets = [f"--set=distill.{name}={value}" for name, value in settings.items()]
    where = ["--teacher", str(teacher), "--data", str(photos / "train")]
    where += ["--val", str(photos / "shown")]
    sets.append("--set=identify.accept_worse_than_bicubic=true")  # the teacher is not trained
    chosen = ["--student", "edsr:c8b2", "--methods", methods, "--seeds", "1"]
    return ["study", *where, *chosen, "--steps", str(steps), *sets]


def curve(out: Path) -> list[dict[str, float]]:
    (file,) = out.glob("distill/*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def far(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """The largest relative difference of two curves."""
    assert [row.keys() for row in one] == [row.keys() for row in other]
    return max(
        abs(a[name] - b[name]) / max(1.0, abs(a[name]))
        for a, b in zip(one, other, strict=True)
        for name in a
    )


def test_two_processes_train_as_one_does(teacher: Path, photos: Path, tmp_path: Path) -> None:
    command = studied(teacher, photos, 50)
    runs = {count: started(count, command, tmp_path / str(count)) for count in (1, 2)}
    for count, process in runs.items():
        _, told = process.communicate()
        assert process.returncode == 0, f"{count}: {told}"
        assert len(list((tmp_path / str(count)).glob("teacher_cache/*"))) == 1
    one, two = curve(tmp_path / "1"), curve(tmp_path / "2")
    assert len(one) == 51  # with the state before the first step
    assert far(one, two) < 1e-5


def test_a_process_that_dies_ends_the_job_and_one_alone_goes_on(
    teacher: Path, photos: Path, tmp_path: Path
) -> None:
    command = studied(teacher, photos, 200, save_every=20, validate_every=200)
    whole, out = started(1, command, tmp_path / "whole"), tmp_path / "parts"
    job = started(2, command, out)
    while not list(out.glob("distill/*.partial/checkpoint.pt")):
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    ranks = [pid for pid in children(job.pid) if environment(pid).get("RANK") == "1"]
    os.kill(ranks[0], signal.SIGKILL)
    _, told = job.communicate()
    assert job.returncode != 0
    # torchrun may end the other process before it has found out by itself.
    itself = "error: distill: process 0 of 2 cannot go on: " in told
    assert itself or "closing signal SIGTERM" in told, told
    assert "SIGKILL" in told  # torchrun's own words on the other one
    again = started(1, command, out)
    _, told = again.communicate()
    assert again.returncode == 0, told
    assert "goes on at step" in told
    whole.communicate()
    # Sums in another order drift apart: the steps around the resume are compared.
    assert far(curve(tmp_path / "whole")[:100], curve(out)[:100]) < 1e-4


def test_a_batch_that_cannot_be_shared_is_told(teacher: Path, photos: Path, tmp_path: Path) -> None:
    job = started(2, studied(teacher, photos, 5, batch=3), tmp_path / "run")
    _, told = job.communicate()
    assert job.returncode != 0
    assert "error: distill.batch: 3 cannot be shared by 2 processes" in told
    assert "--set distill.batch=4" in told


def test_no_thread_of_a_message_outlives_the_processes_work(tmp_path: Path) -> None:
    """One that holds a tensor when Python ends aborts the process."""
    program = tmp_path / "program.py"
    program.write_text(
        """
from pathlib import Path
from mipkd.distill import ranks

with ranks.join_ranks() as mine:
    if mine.rank == 0:
        mine.broadcast(("mipkd.distill.ranks:current", (), {}))
    else:
        ranks._shared["mipkd.distill.ranks:current"] = ranks.current
        ranks.serve()
left = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
print([name for name in left if "gloo" in name], flush=True)
"""
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "--standalone", str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[]") == 2, done.stdout


def children(pid: int) -> list[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode().partition("=")[::2] for entry in entries if entry)
