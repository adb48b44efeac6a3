"""What `run` refuses, `plan` refuses with the same exit code and line, and nothing was trained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mipkd.archs import edsr
from mipkd.core.images import resize_bicubic, write_png
from mipkd.distill.teacher import TeacherOptions, identify, save
from mipkd.export.onnx import export
from pipeline import cli
from targets._tensorrt import symmetric_qdq

TEACHER = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
MAKES_TRAINS = ("distill", "teacher_cache", "build", "export", "qat", "search")


@dataclass(frozen=True)
class Call:
    """Options of a run, of which something is wrong; GIVEN is the folder of what a user has."""

    code: int
    says: str
    words: str
    hint: str = ""
    fresh: bool = False  # the plan has to look for itself: nothing is remembered of the run


_TAUGHT = "--teacher GIVEN/teacher.safetensors --val GIVEN/shown --target cpu --precision fp32"
_TAUGHT += " --set distill.patch=16 --set calibrate.size=16"
_TAUGHT += " --set identify.accept_worse_than_bicubic=true"
_ALL = f"{_TAUGHT} --data GIVEN/photos"
_FINISHED = "--model GIVEN/teacher.safetensors --data GIVEN/photos --val GIVEN/shown"
_FINISHED += " --set distill.patch=16 --set calibrate.size=16"
_GRAPH = f"{_FINISHED.replace('teacher.safetensors', 'student.onnx')} --target cpu"

CALLS = (
    Call(2, "--precision: unknown name 'int9'", f"{_ALL} --precision int9", "did you mean int8?"),
    Call(2, "--precision: cpu: none of bf16 can be built", f"{_ALL} --precision bf16", "int8"),
    Call(2, "target: unknown name 'openvio'", f"{_ALL} --target openvio", "openvino"),
    Call(2, "--target: ',' names nothing", f"{_ALL} --target ,"),
    Call(2, "its scale is x2, --scale asks for x3", f"{_ALL} --scale 3", fresh=True),
    Call(2, "its scale is x2, --scale asks for x4", f"{_GRAPH} --scale 4", fresh=True),
    Call(2, "absent: no such folder", f"{_TAUGHT} --data GIVEN/absent"),
    Call(2, "empty: no image in it", f"{_TAUGHT} --data GIVEN/empty"),
    Call(2, "empty: no image in it", f"{_ALL} --val GIVEN/empty"),
    Call(2, "none of 2 photos can be used", f"{_TAUGHT} --data GIVEN/small",
         "distill.patch", fresh=True),
    Call(2, "none of 2 photos can be used", f"{_TAUGHT} --data GIVEN/damaged", "can be read"),
    Call(2, "none of 2 test images can be used", f"{_ALL} --val GIVEN/small", "32 pixels"),
    Call(2, "has 1 photo that can be used; 2 are the fewest", f"{_TAUGHT} --data GIVEN/one"),
    Call(2, "no photo of", f"{_ALL} --set calibrate.size=60", "calibrate.size=30"),
    Call(2, "is the test image", f"{_TAUGHT} --data GIVEN/shown", "out of --data"),
    Call(2, "LR frames without truth teach nothing", "--data GIVEN/frames --val GIVEN/shown "
         "--target cpu --precision fp32", "--teacher FILE"),
    Call(2, "--lr-only: no effect: --data:", f"{_TAUGHT} --demo-data --set lr_only=data"),
    Call(2, "none of 2 photos can be used", f"{_TAUGHT} --data GIVEN/small --lr-only "
         "--set distill.patch=40", "LR frames need 40 pixels a side", fresh=True),
    Call(2, "learns from the truth alone", f"{_TAUGHT} --data GIVEN/frames "
         "--set distill.method=scratch", "distill.method=logits"),
    Call(2, "degradation.chain: no effect", f"{_TAUGHT} --data GIVEN/frames "
         "--set degradation.chain=second-order"),
    Call(2, "degradation.noise", f"{_ALL} --set degradation.noise=[30,1]"),
    Call(2, "--compare: --val gives LR frames", f"{_FINISHED} --val GIVEN/frames "
         "--compare GIVEN/other.safetensors", "--teacher"),
    Call(2, "holds the LR images of a set", f"{_TAUGHT} --data GIVEN/set/LR", "--lr-only"),
    Call(2, "is the test image", f"{_TAUGHT} --data GIVEN/frames/LR --val GIVEN/frames", "--data"),
    Call(2, "--student: unknown family 'esdr'", f"{_ALL} --student esdr:c8b1", "edsr"),
    Call(2, "--student: cannot read 'wide'", f"{_ALL} --student edsr:wide", "edsr:c32", fresh=True),
    Call(2, "--compare: unknown method 'scrach'", f"{_ALL} --compare scrach", "scratch"),
    Call(2, "absent.pth: no such file", f"{_ALL} --compare GIVEN/absent.pth"),
    Call(2, "--compare: scratch+crosskd: distill.positions", f"{_ALL} --compare scratch+crosskd "
         "--set distill.positions={student=[9],teacher=[9]}"),
    Call(2, "absent.pth: no such file", f"{_ALL} --teacher GIVEN/absent.pth"),
    Call(2, "text.pth: not a checkpoint", f"{_FINISHED} --model GIVEN/text.pth", fresh=True),
    Call(2, "--steps: no effect", f"{_FINISHED} --steps 5", "qat.steps"),
    Call(2, "--student: no effect", f"{_FINISHED} --student edsr:c8b1"),
    Call(2, "--set qat.steps: no effect", f"{_ALL} --set qat.steps=5", "--qat"),
    Call(2, "--set device.tries: no effect", f"{_ALL} --set device.tries=2", "--device"),
    Call(2, "--demo-data: no effect", f"{_ALL} --demo-data"),
    Call(2, "--data: no photos are given", _TAUGHT, "--demo-data"),
    Call(2, "int8 of cpu is calibrated on photos", "--model GIVEN/teacher.safetensors", "--data"),
    Call(2, "scratch would have to be trained", f"{_FINISHED} --compare scratch"),
    Call(2, "--student auto: no latency budget", f"{_ALL} --student auto", "--latency-budget"),
    Call(2, "--latency-budget: nan is no", f"{_ALL} --student auto --latency-budget nan"),
    Call(2, "--latency-budget: -3 is no", f"{_ALL} --student auto --latency-budget -3"),
    Call(2, "--latency-budget: 0 is no", f"{_ALL} --student auto --latency-budget 0", "30"),
    Call(2, "--student: unknown family 'esdr'", f"{_ALL} --student auto --latency-budget 9 "
         "--set fit.candidates=['esdr:c8']", "edsr"),
    Call(2, "distill.init: GIVEN/other.safetensors is a checkpoint of one size", f"{_ALL} "
         "--student auto --latency-budget 9 --set distill.init=GIVEN/other.safetensors", "project"),
    Call(2, "--student: no effect", f"{_FINISHED} --student auto --latency-budget 9"),
    Call(2, "--qat: no effect on cpu", f"{_ALL} --qat"),
    Call(3, "--qat: --model", f"{_GRAPH} --qat", "checkpoint"),
    Call(3, "build.pixels: jetson", f"{_ALL} --target jetson --set build.pixels=uint8"),
    Call(3, "no better than bicubic", _ALL.replace("=true", "=false"), "image_range", fresh=True),
    Call(4, "cuda:99", f"{_ALL} --set distill.device=cuda:99", "distill.device=cpu"),
    Call(2, "distill.init: 'absent.pth': no such file", f"{_ALL} --set distill.init=absent.pth"),
    Call(2, "distill.init: ", f"{_ALL} --set distill.init=GIVEN/other.safetensors", "own size"),
    Call(2, "distill.batch: 3 cannot be shared", f"{_ALL} --set distill.batch=3 "
         "--set distill.accumulate=2"),
    Call(2, "quantize.float: no operation 'nosuch'", f"{_GRAPH} --set quantize.float=['nosuch']"),
    Call(2, "--device: 'board' is no address", f"{_ALL} --device board", "ssh://"),
    Call(2, "--config: cannot read GIVEN/absent.toml", f"{_ALL} --config GIVEN/absent.toml"),
    Call(2, "--out: cannot write to GIVEN/text.pth/run", f"{_ALL} --out GIVEN/text.pth/run"),
)  # fmt: skip


def drawn(folder: Path, seed: int, sides: tuple[int, int] = (96, 112), count: int = 2) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        write_png(folder / f"{index}.png", resize_bicubic(coarse, sides))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has; all runs share `out`, so that each net is identified once."""
    home = tmp_path_factory.mktemp("given")
    drawn(home / "photos", seed=0)
    drawn(home / "shown", seed=1)
    drawn(home / "small", seed=2, sides=(30, 31))
    drawn(home / "one", seed=3, count=1)
    drawn(home / "frames/LR", seed=4, sides=(49, 57))
    drawn(home / "set/HR", seed=5)
    drawn(home / "set/LR", seed=5, sides=(48, 56))
    (home / "empty").mkdir()
    (home / "damaged").mkdir()
    for number in range(2):
        whole = (home / "photos" / f"{number}.png").read_bytes()
        (home / "damaged" / f"{number}.png").write_bytes(whole[: len(whole) // 2])
    (home / "text.pth").write_text("no checkpoint")
    torch.manual_seed(0)
    for name, channels in (("teacher", 8), ("other", 12)):
        hyper = edsr.Hyper(scale=2, channels=channels, blocks=2)
        file = home / f"{name}.safetensors"
        save(edsr.EDSR(hyper), edsr.ARCH, hyper, file, licence="CC0-1.0")
    _, net = identify(TEACHER, role="student", options=TeacherOptions())
    made = export(net, out=home, metadata={}, role="student", family="edsr")
    made.file.rename(home / "student.onnx")
    return home


Ended = SimpleNamespace  # code, what is wrong, the hint


@pytest.fixture
def ended(given: Path) -> Callable[..., Ended]:
    def enter(command: str, words: str) -> Ended:
        typed = words.replace("GIVEN", str(given)).split()
        if "--out" not in typed:
            typed += ["--out", str(given / "out")]
        said = CliRunner().invoke(cli.app, [command, *typed])
        assert "Traceback" not in said.stderr
        assert isinstance(said.exception, SystemExit), said.exception
        lines = said.stderr.splitlines()
        what = next((line for line in lines if line.startswith("error: ")), "")
        hint = next((line for line in lines if line.startswith("hint: ")), "")
        return SimpleNamespace(code=said.exit_code, what=what, hint=hint)

    return enter


def test_there_are_enough_kinds() -> None:
    assert len(CALLS) >= 20
    assert {call.code for call in CALLS} == {2, 3, 4}


@pytest.mark.parametrize("call", CALLS, ids=[call.says for call in CALLS])
def test_plan_refuses_what_run_refuses(
    call: Call, ended: Callable[..., Ended], given: Path
) -> None:
    ran = ended("run", call.words)
    planned = ended("plan", call.words + " --out GIVEN/planned" * call.fresh)
    assert planned == ran
    assert not (given / "planned").exists()
    assert ran.code == call.code
    assert call.says.replace("GIVEN", str(given)) in ran.what
    assert call.hint in ran.hint
    made = {file.name for file in (given / "out").glob("*")}
    assert not made & set(MAKES_TRAINS)


@pytest.mark.parametrize("target", ["jetson", "openvino"])
def test_a_package_that_quantises_is_missed_before_anything_is_trained(
    target: str, ended: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setitem(sys.modules, "modelopt", None)
    assert not symmetric_qdq.find_maker()
    for precision in ("", "--precision fp32,int8"):
        words = f"{_ALL.replace('--precision fp32', precision)} --target {target}"
        planned, ran = (ended(command, words) for command in ("plan", "run"))
        assert planned == ran
        assert ran.code == 4
        assert ran.what == f"error: target {target}: int8 needs nncf, which is not installed"
        assert ran.hint.startswith(f'hint: pip install "mipkd-pipeline[{target}]"; or leave it out')
    shown = CliRunner().invoke(cli.app, ["doctor"]).stdout.splitlines()
    (line,) = (one for one in shown if one.split()[:1] == [target])
    assert line.split(";")[1].strip() == "int8 needs nncf, which is not installed"
    assert "int8" not in line.split(";")[0]


def test_a_graph_is_refused_for_a_target_that_builds_from_the_net(
    ended: Callable[..., Ended],
) -> None:
    pytest.importorskip("coremltools")
    words = _GRAPH.replace("--target cpu", "--target cpu,coreml")
    planned, ran = (ended(command, words) for command in ("plan", "run"))
    assert planned == ran
    assert ran.code == 3
    assert "error: target coreml: --model " in ran.what
    assert "give the checkpoint" in ran.hint
