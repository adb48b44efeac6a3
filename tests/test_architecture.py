"""The house keeps its plan: imports, bare devices, and one file for a new thing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

HEAVY = ("torch", "pydantic", "typer", "PIL", "onnx", "onnxruntime", "openvino", "skimage", "nncf")


def python(code: str, *path: Path) -> str:
    """Standard output of `code` with our packages and `path` importable."""
    setup = f"import sys; sys.path[:0] = {[str(p) for p in (ROOT, *path)]!r}\n"
    command = [sys.executable, "-c", setup + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rooms_import_only_what_they_may() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "targets.cpu",
        "targets.openvino",
        "targets.null",
        "pipeline.bench.latency",
        "pipeline.bench.host",
        "pipeline.bench.pixels",
        "pipeline.machine.ssh",
        "pipeline.machine.remote.agent",
        "pipeline.machine.remote.kit_program",
        "mipkd.core.records",
        "pipeline.cli",
    ],
)
def test_the_device_side_imports_without_anything_heavy(module: str) -> None:
    allowed = {"typer", "pydantic"} if module == "pipeline.cli" else set()
    python(
        f"import {module}\n"
        f"heavy = [n for n in {HEAVY!r} if n in sys.modules and n not in {allowed!r}]\n"
        "assert not heavy, heavy"
    )


def test_a_target_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/echo.py").write_text(
        "from targets.null import Null\nclass Echo(Null):\n    name = 'echo'\nTARGET = Echo()\n"
    )
    code = (
        "from pipeline.doctor import examine_machine\n"
        "print(examine_machine()['targets']['echo']['usable'])"
    )
    assert python(code, tmp_path).strip() == "True"


def test_an_architecture_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "mipkd/archs").mkdir(parents=True)
    (tmp_path / "mipkd/archs/twin.py").write_text(
        "from mipkd.archs.edsr import EDSR, Family\n"
        "class Twin(Family):\n"
        "    name = 'twin'\n"
        "    signs = {'original': ('twin.weight',)}\n"
        "    def canonical(self, state):\n"
        "        if 'twin.weight' not in state: return None\n"
        "        state = {k: v for k, v in state.items() if k != 'twin.weight'}\n"
        "        return Family.canonical(Family(), state)\n"
        "ARCH = Twin()\n"
    )
    code = (
        "import torch\n"
        "from pathlib import Path\n"
        "from mipkd.archs import edsr\n"
        "from mipkd.distill.teacher import TeacherOptions, identify\n"
        "net = edsr.EDSR(edsr.Hyper(2, channels=8, blocks=1))\n"
        "state = edsr.ARCH.original(net) | {'twin.weight': torch.zeros(1)}\n"
        f"file = Path({str(tmp_path / 'w.pth')!r})\n"
        "torch.save(state, file)\n"
        "model, _ = identify(file, role='teacher', options=TeacherOptions())\n"
        "print(model.arch)"
    )
    assert python(code, tmp_path).strip() == "twin"


def test_a_loss_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "mipkd/losses").mkdir(parents=True)
    (tmp_path / "mipkd/losses/squared.py").write_text(
        "from mipkd.losses.base import Loss\n"
        "class Squared(Loss):\n"
        "    def __call__(self, seen, helper):\n"
        "        error = (seen.student_image - seen.hr_NCHW).pow(2).mean()\n"
        "        return {'squared': self.weight * error}\n"
        "LOSS = Squared\n"
    )
    code = (
        "from mipkd.distill.settings import DistillConfig\n"
        "from mipkd.core import plugins\n"
        "config = DistillConfig(losses=({'name': 'squared', 'weight': 2.0},))\n"
        "assert 'squared' in plugins.names('mipkd.losses')\n"
        "print(plugins.load('mipkd.losses', 'squared', 'LOSS')(weight=2.0).weight)"
    )
    assert python(code, tmp_path).strip() == "2.0"
