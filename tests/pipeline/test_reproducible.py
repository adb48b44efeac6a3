"""Two runs of the same inputs give the same bytes, but for what is a time or hangs on one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.images import resize_bicubic, write_png
from mipkd.distill.files import write_state
from mipkd.distill.teacher import save
from pipeline.bundle import manifest

WORDS = (
    *("run", "--steps", "2", "--precision", "fp32,int8", "--target", "cpu,openvino"),
    *("--set", "identify.accept_worse_than_bicubic=true"),  # the teacher is not trained
    *("--set", "distill.batch=2", "--set", "distill.patch=16"),
    *("--set", "calibrate.count=8", "--set", "calibrate.size=32", "--set", "quantize.search=false"),
    *("--set", "bench.sizes=[[24,32]]", "--set", "bench.min_time_s=0.05"),
    *("--set", "bench.warmup_s=0.01", "--set", "bench.max_drift=9", "--set", "bench.max_busy=1"),
)
OF_THE_CLOCK = {"manifest.json", "README.md", "openmodeldb.json", "run.json"}  # and bench/


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, photos and test images."""
    folder, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    torch.manual_seed(0)
    hyper = edsr.Hyper(2, channels=12, blocks=3)
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, folder / "teacher.safetensors", licence="CC0-1.0")
    for name in ("photos", "shown"):
        (folder / name).mkdir()
        for index in range(3):
            coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
            write_png(folder / name / f"{index}.png", resize_bicubic(coarse, (96, 112)))
    return folder


def run_in(folder: Path, given: Path, seed: str) -> Path:
    """The bundle of a run in a process of its own."""
    code = "from pipeline.cli import main; main()"
    nets = ["--teacher", given / "teacher.safetensors", "--student", "edsr:c8b2"]
    words = [*WORDS, *nets, "--data", given / "photos", "--val", given / "shown", "--out", folder]
    env = os.environ | {"PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", code, *map(str, words)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ran.returncode in (0, 6, 7), ran.stderr  # a student of two steps need not be good
    return folder / "bundle"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, given: Path) -> Path:
    """The bundle of one run."""
    pytest.importorskip("nncf")
    return run_in(tmp_path_factory.mktemp("a") / "first", given, "1")


def test_two_runs_in_two_folders_give_equal_bytes(first: Path, given: Path, tmp_path: Path) -> None:
    one = first
    two = run_in(tmp_path / "b" / "second", given, "2")
    stated = [manifest.read(bundle) for bundle in (one, two)]
    assert {*stated[0].files} == {*stated[1].files}
    assert "model/openvino-int8/model.xml" in stated[0].files
    names = {name for name in stated[0].files if not name.startswith("bench/")} - OF_THE_CLOCK
    differ = [n for n in sorted(names) if (one / n).read_bytes() != (two / n).read_bytes()]
    assert not differ
    assert stated[0].content == stated[1].content
    assert len(stated[0].content) == 64
    assert stated[0].seal != stated[1].seal


def test_another_pixel_is_another_content(first: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(first, tmp_path / "bundle"))
    before = manifest.read(bundle)
    (bundle / "golden/lr").joinpath("extra.png").write_bytes(b"")
    manifest.write(
        manifest.Manifest(
            *(1, before.name, before.created, before.program, before.scale, before.multiple),
            *(before.models, manifest.list_files(bundle)),
        ),
        bundle,
    )
    assert manifest.read(bundle).content != before.content


def test_weights_are_the_same_file_each_time(tmp_path: Path) -> None:
    import torch

    header = {name: name for name in "abcdefgh"}  # written in any order by safetensors
    written = set()
    for number in range(8):
        write_state({"b": torch.ones(3), "a": torch.zeros(2)}, tmp_path / f"{number}", header)
        written.add((tmp_path / f"{number}").read_bytes())
    assert len(written) == 1
