"""Teachers of families that are not ours: read, kept, scored, and taught from."""

import importlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mipkd.archs import edsr
from mipkd.archs.base import gmacs, upscale_image
from mipkd.core.errors import MissingError, StageError, UnsupportedError, UsageError
from mipkd.core.images import resize_bicubic, write_png
from mipkd.core.records import Graph
from mipkd.distill.data import prepare_tests
from mipkd.distill.probe import ProbeImages
from mipkd.distill.teacher import TeacherOptions, identify, load, save_copy
from pipeline import cli
from pipeline.stage import ready
from pipeline.stages.export import ExportConfig, ExportInputs, export

ASIS = TeacherOptions()


@pytest.fixture
def foreign(spandrel: Any, tmp_path: Path) -> Path:
    """A tiny net of a family that we do not have."""
    made = importlib.import_module("spandrel.architectures.PLKSR").PLKSR
    torch.manual_seed(0)
    net = made(dim=8, n_blocks=4, upscaling_factor=2)
    file = tmp_path / "plksr.pth"
    torch.save({"params_ema": net.state_dict()}, file)
    return file


def test_it_is_described_as_far_as_spandrel_knows_it(foreign: Path) -> None:
    model, net = identify(foreign, role="teacher", options=ASIS)
    assert (model.arch, model.scale, model.licence) == ("PLKSR", 2, "unknown")
    assert model.layout.startswith("spandrel 0.")
    assert "feats.1,feats.2" in model.settled["blocks"]
    assert "4 blocks of 8 channels" in model.settled["blocks"]
    assert model.params == sum(p.numel() for p in net.parameters())
    assert model.gmacs == pytest.approx(gmacs(net), rel=0.01)
    assert net(torch.rand(1, 3, 7, 9)).shape == (1, 3, 14, 18)


def test_options_settle_blocks_and_licence_and_nothing_else(foreign: Path) -> None:
    options = TeacherOptions(blocks="feats.2,feats.4", licence="Apache-2.0")
    model, net = identify(foreign, role="teacher", options=options)
    assert model.licence == "Apache-2.0"
    assert "option: 2 blocks" in model.settled["blocks"]
    assert len(net.blocks) == 2
    with pytest.raises(UsageError, match=r"identify\.res_scale: PLKSR has no such setting"):
        identify(foreign, role="teacher", options=TeacherOptions(res_scale=0.1))
    with pytest.raises(UsageError, match="its scale is x2, --scale asks for x4"):
        identify(foreign, role="teacher", options=TeacherOptions(scale=4))


def test_a_foreign_net_may_take_pixels_from_0_to_255(foreign: Path, tmp_path: Path) -> None:
    """Of an option or of a probe; a kept copy takes them too."""
    model, net = identify(foreign, role="teacher", options=TeacherOptions(image_range=255.0))
    lr = torch.rand(1, 3, 24, 24)
    with torch.inference_mode():
        wanted = net(lr)
    assert torch.equal(wanted, net.net(lr * 255) / 255)
    assert model.settled["image_range"] == "255.0 (option)"
    save_copy(model, net, tmp_path / "kept.safetensors")
    with torch.inference_mode():
        assert torch.equal(load(replace(model, file=tmp_path / "kept.safetensors"))(lr), wanted)
    truth = _as_bytes(net, lr)
    images = ProbeImages("its own", [("a", *truth)])
    model, _ = identify(foreign, role="teacher", options=ASIS, probe=lambda scale: images)
    assert model.hyper["image_range"] == 255.0
    assert "1.0, assumed by spandrel" in model.settled["image_range"]


def _as_bytes(net: Any, lr_NCHW: torch.Tensor) -> tuple[Any, Any]:
    """An LR image, and what the net makes of it."""
    lr_HWC = lr_NCHW[0].permute(1, 2, 0).mul(255).byte().numpy()
    return lr_HWC, upscale_image(net, lr_HWC)


def test_blocks_of_our_own_families_need_no_name(tmp_path: Path) -> None:
    file = tmp_path / "edsr.pth"
    torch.save(edsr.ARCH.original(edsr.EDSR(edsr.Hyper(2, channels=8, blocks=1))), file)
    with pytest.raises(UsageError, match=r"identify\.blocks: those of edsr are known"):
        identify(file, role="teacher", options=TeacherOptions(blocks="body"))


def test_a_kept_copy_gives_the_same_image_and_features(foreign: Path, tmp_path: Path) -> None:
    model, net = identify(foreign, role="teacher", options=TeacherOptions(blocks="feats.2,feats.4"))
    file = tmp_path / "teacher.safetensors"
    save_copy(model, net, file)
    again = load(replace(model, file=file))
    lr = torch.rand(1, 3, 8, 8)
    image, taps = net.forward_with_taps(lr, (0, 1))
    other_image, others = again.forward_with_taps(lr, (0, 1))
    assert torch.equal(image, other_image)
    assert all(torch.equal(a, b) for a, b in zip(taps, others, strict=True))


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    file = tmp_path / "stranger.pth"
    torch.save({"head.0.weight": torch.zeros(8, 3, 3, 3)}, file)
    return file


def test_what_nobody_knows_names_the_nearest_of_ours(spandrel: Any, stranger: Path) -> None:
    with pytest.raises(UnsupportedError, match="nearest is edsr, but its key 'body") as caught:
        identify(stranger, role="teacher", options=ASIS)
    assert "compact, edge, edsr, imdn" in caught.value.hint
    assert "spandrel does not know it either" in caught.value.hint


def test_without_spandrel_its_install_is_named_that_leaves_torch_alone(
    stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(MissingError, match=r"nearest is edsr.*is not installed") as caught:
        identify(stranger, role="teacher", options=ASIS)
    assert caught.value.hint == "pip install --no-deps einops spandrel"


def test_what_keeps_spandrel_from_its_import_is_told(
    stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spandrel.py").write_text("raise RuntimeError('no kernel for this machine')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    with pytest.raises(MissingError, match="cannot be imported: no kernel for") as caught:
        identify(stranger, role="teacher", options=ASIS)
    assert "--no-deps einops spandrel" in caught.value.hint


TORCHVISIONS = {
    "of a CUDA build": "raise RuntimeError('operator torchvision::nms does not exist')",
    "of another torch": "import torch; torch.library.no_such_name",
}
READ = """
import sys, torch
from mipkd.distill.spandrel_reader import import_spandrel

spandrel = import_spandrel()
assert "torchvision" not in sys.modules, "a module of ours stays where the real one is asked for"
net = spandrel.architectures.DCTLSA.DCTLSA()
found = spandrel.ModelLoader().load_from_state_dict(net.state_dict())
print(found.architecture.name, found.scale)
"""


@pytest.mark.parametrize("kind", TORCHVISIONS)
def test_it_reads_nets_beside_any_torchvision(spandrel: Any, kind: str, tmp_path: Path) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(TORCHVISIONS[kind])
    found = subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.split() == ["DCTLSA", "4"], found.stderr


def test_a_denoiser_is_refused(spandrel: Any, tmp_path: Path) -> None:
    made = importlib.import_module("spandrel.architectures.DnCNN").DnCNN
    file = tmp_path / "denoiser.pth"
    torch.save(made(in_nc=3, out_nc=3, nc=8, nb=4).state_dict(), file)
    with pytest.raises(UnsupportedError, match="DnCNN for Restoration, x1"):
        identify(file, role="teacher", options=ASIS)


@pytest.mark.parametrize(("scale", "published"), [(4, 32.523)])
def test_dctlsa_reaches_its_published_figures_on_set5(
    spandrel: Any, assets: Path, scale: int, published: float
) -> None:
    file = assets / "weights" / f"DCTLSA_x{scale}.pt"
    command = ["doctor", str(file), "--images", str(assets / "test/Set5"), "--json"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["psnr_y_db"] == pytest.approx(published, abs=0.01)
    assert found["hyper"]["blocks"] == "B1,B2,B3,B4,B5,B6"


def run(teacher: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A whole run of two steps: its folder and its results."""
    photos, shown, out = (folder / name for name in ("photos", "shown", "run"))
    rng = np.random.default_rng(0)
    for images in (photos, shown):
        images.mkdir()
        for index in range(2):
            coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
            write_png(images / f"{index}.png", resize_bicubic(coarse, (96, 112)))
    settings = ("distill.batch=2", "distill.patch=16", "calibrate.count=4", "calibrate.size=16")
    settings += ("bench.sizes=[[16, 16]]", "bench.min_time_s=0.05", "bench.warmup_s=0.01")
    settings += ("quantize.search=false", "distill.method=feature_prior")
    settings += ("identify.accept_worse_than_bicubic=true",)
    command = ["run", "--teacher", teacher, "--student", "edsr:c8b2", "--data", photos]
    command += ["--val", shown, "--out", out, "--steps", "2", "--target", "cpu"]
    command += [word for one in settings for word in ("--set", one)]
    result = CliRunner().invoke(cli.app, [str(word) for word in command])
    assert result.exit_code in (6, 7), result.stderr  # two steps teach nothing
    return out, json.loads((out / "report/latest/results.json").read_text())


@pytest.mark.slow
def test_one_command_distils_from_it(foreign: Path, tmp_path: Path) -> None:
    out, results = run(foreign, tmp_path)
    (curves,) = out.glob("distill/*/metrics.jsonl")
    assert {"pixel", "logits", "feature"} <= json.loads(curves.read_text().splitlines()[1]).keys()
    assert {one["role"] for one in results["failures"]} <= {"teacher"}
    assert results["teacher"]["arch"] == "PLKSR"
    assert results["teacher"]["licence"] == "unknown"


# Stands in for spandrel: one net, on which exporters kill the process.
FAKE = """
import os
import signal
import torch
from types import SimpleNamespace
from torch import nn

__version__ = "0.0"

class UnsupportedModelError(Exception): pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1))
        self.up = nn.PixelShuffle(2)
    def forward(self, lr):
        if DIES:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.up(self.body(lr))

class ImageModelDescriptor:
    scale, input_channels, output_channels, purpose = 2, 3, 3, "SR"
    architecture = SimpleNamespace(name="Fatal")
    size_requirements = SimpleNamespace(multiple_of=1, minimum=0, square=False)
    def __init__(self, state):
        self.model = Net()
        self.model.load_state_dict(state)
    def __call__(self, lr):
        return self.model(lr).clamp(0, 1)

class ModelLoader:
    def load_from_state_dict(self, state):
        return ImageModelDescriptor(state)

def canonicalize_state_dict(state):
    return state
"""


_NEWER, _OLDER = "torch.compiler.is_exporting()", "torch.jit.is_tracing()"


def fatal(dies: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a net on which the exporters die that the expression `dies` tells."""
    (folder / "spandrel.py").write_text(FAKE.replace("DIES", dies))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    fake = importlib.import_module("spandrel")
    monkeypatch.setitem(sys.modules, "spandrel", fake)
    torch.save(fake.Net().state_dict(), folder / "fatal.pth")
    return folder / "fatal.pth"


def exported(file: Path, folder: Path, role: str) -> Graph:
    model, _ = identify(file, role=role, options=TeacherOptions())
    (folder / "tests").mkdir()
    tests = prepare_tests(None, scale=2, out=folder / "tests")
    return export.function(
        ExportInputs(ExportConfig(), ready(model), None, ready(tests)), out=folder
    )


def test_where_the_newer_exporter_dies_the_older_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pipeline")
    graph = exported(fatal(_NEWER, tmp_path, monkeypatch), tmp_path, "student")
    assert graph.parity_max_abs is not None
    assert graph.parity_max_abs < 1e-5
    assert "torch's newer exporter, for Fatal: its process died of SIGSEGV" in caplog.text


@pytest.mark.parametrize(
    ("role", "option"), [("student", "--model FILE.onnx"), ("teacher", "min_speedup_over_teacher")]
)
def test_where_both_die_the_hint_is_of_the_option_that_was_used(
    role: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fatal(f"{_NEWER} or {_OLDER}", tmp_path, monkeypatch)
    with pytest.raises(StageError, match=r"newer exporter.*SIGSEGV.*older exporter.*SIGSEGV") as e:
        exported(file, tmp_path, role)
    assert option in e.value.hint


@pytest.mark.slow
def test_a_teacher_that_cannot_be_exported_is_a_row_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, results = run(fatal(f"{_NEWER} or {_OLDER}", tmp_path, monkeypatch), tmp_path)
    (failure,) = results["failures"]
    assert (failure["role"], failure["stage"], failure["target"]) == ("teacher", "export", "onnx")
    assert "for Fatal: its process died of SIGSEGV" in failure["what"]
    assert "min_speedup_over_teacher=off" in failure["hint"]
    assert {"cpu"} <= {m["target"] for m in results["measurements"] if m["role"] == "student"}
    assert "onnx" not in {one["target"] for one in results["verdict"]["recommended"]}
