"""One small finished run, shared by all that work on its folder's copies."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mipkd.archs import edsr
from mipkd.core.images import read_rgb, write_png
from mipkd.core.samples import sample_tests
from mipkd.distill.teacher import save
from pipeline import cli

SIMULATED = "coreml"  # on any machine but a Mac
SHOWN = ("blue-periwinkle", "canyon-wren", "ocean-waves")  # test images: too few for a mean
_QUICK = (
    "--demo-data",
    *("--target", f"cpu,null,{SIMULATED},jetson", "--precision", "fp32,int8"),
    *("--set", "calibrate.count=8", "--set", "calibrate.size=32"),
    *("--set", "quantize.photos=6", "--set", "quantize.pages=2", "--set", "quantize.crop=32"),
    *("--set", "quantize.size=[32,32]"),
    *("--set", "bench.sizes=[[24,32],[32,32]]", "--set", "bench.min_time_s=0.05"),
    *("--set", "bench.warmup_s=0.01", "--set", "bench.max_drift=9", "--set", "bench.max_busy=1"),
    *("--set", "gates.max_loss_to_teacher=off"),  # the teacher is random weights, and slow
)


@dataclass(frozen=True)
class Ended:
    """What a command said."""

    code: int
    out: str
    err: str


def _ended(*words: object) -> Ended:
    """A command, run in this process."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


@dataclass(frozen=True)
class Finished:
    """A run's folder, the words that made it, and what they said."""

    root: Path
    words: tuple[object, ...]
    said: Ended

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run itself: not to be changed."""
    if sys.platform == "darwin":
        pytest.skip(f"{SIMULATED} is measured on a Mac, and these tests need one that is not")
    pytest.importorskip("coremltools")
    folder = tmp_path_factory.mktemp("once")
    torch.manual_seed(0)
    hyper = edsr.Hyper(scale=2, channels=48, blocks=10)
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, folder / "slow.safetensors", licence="CC-BY-NC-4.0")
    model = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
    (folder / "shown").mkdir()
    for photo in (one for one in sample_tests() if one.stem in SHOWN):
        write_png(folder / "shown" / f"{photo.stem}.png", read_rgb(photo))
    nets = ("--model", model, "--teacher", folder / "slow.safetensors")
    words = ("run", *nets, "--val", folder / "shown", *_QUICK)
    before = logging.root.handlers[:], logging.root.level
    said = _ended(*words, "--out", folder / "run")
    logging.root.handlers[:], logging.root.level = before
    return Finished(folder / "run", words, said)


@pytest.fixture
def finished(once: Finished, tmp_path: Path) -> Finished:
    """A copy that a test may change."""
    return Finished(
        Path(shutil.copytree(once.root, tmp_path / "run", symlinks=True)), once.words, once.said
    )


@pytest.fixture(scope="session")
def ended() -> Callable[..., Ended]:
    """Runs a command."""
    return _ended


@pytest.fixture
def figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` judges recorded figures and runs no model: that is looked at elsewhere."""
    monkeypatch.setattr("pipeline.judge.check.replay", lambda *_, **__: iter(()))
