"""A reader's working folder: all that README and docs name, tiny, and a `mipkd.toml` to match."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
import tomli_w
import tomllib
import torch

from mipkd.archs import edsr, rcan
from mipkd.archs.base import Arch
from mipkd.core.images import ByteArray, downscale, read_rgb, write_png
from mipkd.core.samples import sample_photos, sample_tests
from mipkd.distill.teacher import TeacherOptions, identify
from mipkd.export.onnx import export
from pipeline.config_values import merge_settings
from pipeline.judge.regression import FEWEST_COMPARED

ROOT = Path(__file__).parents[2]
_M = re.DOTALL | re.MULTILINE
SIDE = 96  # HR pixels of every photo

# What the flags leave out comes from here: seconds where a reader's take minutes or days.
TINY = """
data = "photos"
precision = ["fp32"]
val = "Set5"
distill = {batch = 2, patch = 16, steps = 2, precision = "fp32"}
fit = {candidates = ["edge:c8b1"]}
calibrate = {count = 4, size = 16}
quantize = {search = false}
bench.sizes = [[24, 24]]
bench.min_time_s = 0.02
bench.warmup_s = 0.01
bench.max_drift = 9
bench.max_busy = 1
bench.attempts = 1
gates.min_speedup_over_teacher = "off"
gates.max_loss_to_teacher = "off"
gates.max_mean_drop_db = "off"
gates.max_worst_drop_db = "off"
gates.max_channel_shift = "off"
identify = {accept_worse_than_bicubic = true}
"""

SETS = ("Set5", "Set14", "assets/test/Set5", "assets/test/Set14", "assets/test/B100")
PHOTOS = ("photos", "BSDS400", "assets/train/BSDS400")


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, test sets, teachers under the names that the pages use; runs and bundles are made
    by the pages' own commands."""
    home = tmp_path_factory.mktemp("desk")
    (home / "mipkd.toml").write_text(TINY)
    for name in PHOTOS:
        _photos(home / name)
    for seed, name in enumerate(SETS):
        _test_set(home / name, seed)
    small = edsr.Hyper(scale=4, channels=8, blocks=2)
    _teacher(home / "edsr.pth", edsr.ARCH, small)
    wide = edsr.Hyper(scale=4, channels=32, blocks=8)
    _teacher(home / "edsr_baseline_x4_deq8.pt", edsr.ARCH, wide)
    _teacher(home / "rcan.pth", rcan.ARCH, rcan.Hyper(scale=4, channels=8, groups=2, blocks=1))
    weights = home / "assets/weights"
    _teacher(weights / "edsr_baseline_x4_deq8.pt", edsr.ARCH, small)
    x2 = edsr.Hyper(scale=2, channels=8, blocks=2)
    _teacher(weights / "mlperf_edsr/edsr_f64b5_x2.pt", edsr.ARCH, x2)
    _graph(home / "student.onnx")
    for page in (ROOT / "docs/results").rglob("*.toml"):
        _configuration(page, home / page.relative_to(ROOT))
    _extensions(ROOT / "docs/extending.md", home)
    _signer(home / "release-key")
    return home


def _signer(key: Path) -> None:
    """Ann's key, and the file that says so."""
    if shutil.which("ssh-keygen"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(words, check=True)
        public = key.with_suffix(".pub").read_text()
        key.with_name("allowed_signers").write_text(f"ann@example.org {public}")


def _photos(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, file in enumerate(sample_photos()[:4]):
        write_png(folder / f"{number}.png", _piece(file, 128))


def _test_set(folder: Path, seed: int) -> None:
    """As many images as `check` needs to find nothing lost."""
    for kind in ("HR", "LR_bicubic/X2", "LR_bicubic/X4"):
        (folder / kind).mkdir(parents=True)
    files = sample_tests()
    for number in range(FEWEST_COMPARED):
        hr = _piece(files[number % len(files)], 8 * seed + number)
        write_png(folder / f"HR/{number}.png", hr)
        for scale in (2, 4):
            write_png(folder / f"LR_bicubic/X{scale}/{number}x{scale}.png", downscale(hr, scale))


def _piece(file: Path, start: int) -> ByteArray:
    image = read_rgb(file)
    start %= min(image.shape[:2]) - SIDE + 1
    return image[start : start + SIDE, start : start + SIDE]


def _teacher(file: Path, arch: Arch, hyper: object) -> None:
    """A checkpoint under the original repository's key names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(arch.original(arch.make(hyper)), file)


def _graph(file: Path) -> None:
    """A net that has been trained, the package's own, as ONNX."""
    preset = Path(str(files("pipeline") / "presets/teacher_x2.safetensors"))
    _, net = identify(preset, role="student", options=TeacherOptions())
    made = export(net, out=file.parent, metadata={}, role="student", family="edsr")
    made.file.rename(file)


def _configuration(page: Path, file: Path) -> None:
    """A page's own settings, and the tiny ones over them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tiny = tomllib.loads(TINY)
    del tiny["data"], tiny["val"]
    file.write_text(tomli_w.dumps(merge_settings(tomllib.loads(page.read_text()), tiny)))


def _extensions(page: Path, home: Path) -> None:
    """The files that a page shows, each under the name that stands before it."""
    for name, code in re.findall(
        r"^`(mine/\S+\.py)`.*?^```python\n(.*?)^```", page.read_text(), _M
    ):
        file = home / name
        file.parent.mkdir(parents=True)
        file.write_text(code)
