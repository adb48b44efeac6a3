"""`run --compare`: rivals go the student's way, beside it and in nobody's."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mipkd.archs import edsr
from mipkd.core.codec import decode
from mipkd.core.evidence import Evidence
from mipkd.core.images import resize_bicubic, write_png
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built
from mipkd.distill.teacher import save
from pipeline.bench.models import time_models
from pipeline.bundle import manifest
from pipeline.bundle.provenance import command, provenance, read_provenance
from pipeline.machine import local
from pipeline.run import EVIDENCE, Run

Command = Callable[..., Any]
TINY = (
    *("--target", "cpu,null,jetson", "--precision", "fp32,int8"),
    *("--set", "distill.batch=2", "--set", "distill.patch=16", "--set", "calibrate.count=4"),
    *("--set", "calibrate.size=16", "--set", "bench.sizes=[[16, 16]]"),
    *("--set", "identify.accept_worse_than_bicubic=true"),  # the teacher is not trained
    *("--set", "bench.min_time_s=0.05", "--set", "bench.warmup_s=0.01"),
    *("--set", "bench.max_busy=1"),  # other work on the machine is not our subject
    *("--set", "quantize.photos=2", "--set", "quantize.pages=1", "--set", "quantize.size=[16, 16]"),
)
RKD_FAILS = "one of 2 has no relations to compare"  # with batches of two images


def net(file: Path, *, scale: int = 2, channels: int = 8, blocks: int = 2, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    hyper = edsr.Hyper(scale=scale, channels=channels, blocks=blocks)
    save(edsr.EDSR(hyper), edsr.ARCH, hyper, file, licence="CC0-1.0")
    return file


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, rivals in files, photos, test images."""
    folder = tmp_path_factory.mktemp("given")
    net(folder / "teacher.safetensors")
    net(folder / "plain one.safetensors", channels=12, blocks=1, seed=1)
    net(folder / "student.safetensors", channels=8, blocks=1)
    net(folder / "x4.safetensors", scale=4)
    for seed, name in enumerate(("photos", "shown")):
        (folder / name).mkdir()
        rng = np.random.default_rng(seed)
        for index in range(2):
            coarse = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
            write_png(folder / name / f"{index}.png", resize_bicubic(coarse, (96, 112)))
    return folder


def words(given: Path, *more: object) -> tuple[object, ...]:
    trained = () if "--model" in more else ("--steps", "2")
    images = ("--data", given / "photos", "--val", given / "shown")
    return ("--teacher", given / "teacher.safetensors", *images, *TINY, *trained, *more)


@pytest.fixture(scope="module")
def compared(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run beside a trained rival, one that cannot be trained, and one that was finished."""
    from typer.testing import CliRunner

    from pipeline import cli

    run = tmp_path_factory.mktemp("compared") / "run"
    rivals = f"scratch,rkd,{given}/plain one.safetensors"
    asked = ("run", *words(given, "--compare", rivals, "--out", run))
    said = CliRunner().invoke(cli.app, [str(word) for word in asked])
    assert said.exit_code in (6, 7), said.stderr  # two steps teach nothing
    (run / "said.txt").write_text(said.stdout + said.stderr)
    return run


@pytest.fixture
def results(compared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((compared / "report/latest/results.json").read_text())
    return found


def test_rivals_are_measured_where_and_as_the_student_is(results: dict[str, Any]) -> None:
    on = {
        target: [
            (m["role"], m["precision"]) for m in results["measurements"] if m["target"] == target
        ]
        for target in ("cpu", "jetson", "reference")
    }
    both = [(role, p) for role in ("student", "scratch", "plain-one") for p in ("fp32", "int8")]
    assert on["cpu"] == on["jetson"] == [*both, ("teacher", "fp32")]
    assert [role for role, _ in on["reference"]] == [
        *("bicubic", "student", "scratch", "plain-one", "teacher"),
    ]
    rivals = {rival["name"]: rival for rival in results["rivals"]}
    assert list(rivals) == ["scratch", "rkd", "plain-one"]
    scratch = rivals["scratch"]
    gains = {gain["rival"]: gain for gain in results["figures"]["gains"]}["scratch"]["on"]
    simulated = {(one["target"], one["precision"]): one["simulated"] for one in gains}
    assert not simulated["cpu", "int8"]
    assert simulated["jetson", "int8"]
    assert all(one["gain_db"] for one in gains)
    assert scratch["distilled"]["losses"] == ["pixel"]
    assert [plan["target"] for plan in scratch["plans"]] == ["cpu"]  # searched on its own
    assert rivals["plain-one"]["distilled"] is None


def test_a_trained_rival_differs_by_its_losses_alone(compared: Path) -> None:
    receipts = [json.loads(f.read_text()) for f in compared.glob("distill/*/receipt.json")]
    ours, theirs = ({r["label"]: r for r in receipts}[label]["asked"] for label in ("", "scratch"))
    apart = {name for name in ours if ours[name] != theirs[name]}
    assert apart <= {"config", "cache"}, "the same student, photos and tests"
    differs = {name for name in ours["config"] if ours["config"][name] != theirs["config"][name]}
    assert differs == {"losses"}


def test_a_rival_that_fails_is_a_row_and_no_gate(compared: Path, results: dict[str, Any]) -> None:
    (failure,) = results["failures"]
    assert (failure["role"], failure["stage"]) == ("rkd", "distill")
    assert RKD_FAILS in failure["what"]
    told = json.dumps(results["verdict"])
    assert not any(name in told for name in ("scratch", "rkd", "plain-one"))
    page = (compared / "report/latest/report.md").read_text()
    assert "torch fp32 of rkd, distill: " in page
    assert "Over rkd: cannot be told: it has no scores in FP32." in page
    assert "Over scratch: " in page.split("## Did the distillation gain survive?")[1]
    said = (compared / "said.txt").read_text()
    assert "gain    Over scratch: " in said
    assert re.search(r"plain-one has [\d,]+ parameters, the student", " ".join(said.split()))
    assert "The budget is not the same: " in page


def test_the_bundle_holds_the_student_alone(compared: Path, ended: Command, tmp_path: Path) -> None:
    bundle = compared / "bundle"
    stated = manifest.read(bundle)
    assert sorted(m.name for m in stated.models) == sorted(
        ("cpu-fp32", "cpu-int8", "null-fp32", "jetson-fp32", "jetson-int8")
    )
    builds = {
        receipt["label"]: file.parent
        for file in compared.glob("build/*/receipt.json")
        if (receipt := json.loads(file.read_text()))
    }
    packed = bundle / "model/cpu-int8/model.onnx"
    assert packed.read_bytes() == (builds["cpu student int8"] / "model.onnx").read_bytes()
    assert ended("verify", bundle).code == 0
    assert ended("check", bundle).code in (6, 7)
    stated = json.loads((bundle / "provenance.json").read_text())
    assert [plan.target for plan in read_provenance(bundle).plans] == ["cpu"]
    assert str(compared.parent) not in json.dumps(stated)
    made = ended("kit", bundle, "--target", "jetson", "-o", tmp_path / "kit.pyz")
    assert "scratch int8, plain-one fp32" in made.out  # beside the run, so that it can be compared


def test_rivals_leave_no_path_in_what_is_handed_on(compared: Path) -> None:
    evidence = Run(compared).load_record(EVIDENCE, Evidence)
    told = "mipkd-pipeline run --compare 'scratch,/home/me/a b.pth' --out /home/me/run"
    words = command(replace(evidence, command=told))
    assert words[2:] == ["--compare", "scratch,a b.pth"]
    build = provenance(evidence, "", {})["predicate"]["buildDefinition"]
    config, made = (build[f"{kind}Parameters"] for kind in ("external", "internal"))
    assert config["config"]["compare"] == ["scratch", "rkd", "plain one.safetensors"]
    assert [rival["name"] for rival in made["rivals"]] == ["scratch", "rkd", "plain-one"]


def test_a_run_that_is_repeated_or_widened_makes_only_what_is_new(
    compared: Path, given: Path, ended: Command
) -> None:
    rivals = f"scratch,{given}/plain one.safetensors"
    planned = ended("plan", *words(given, "--compare", rivals, "--out", compared))
    assert planned.out.splitlines()[-1].startswith("0 of ")
    planned = ended("plan", *words(given, "--out", compared))
    assert steps_to_run(planned) == ["reference", "measure cpu", "measure null", "measure jetson"]
    planned = ended("plan", *words(given, "--compare", "scratch,at", "--out", compared))
    todo = steps_to_run(planned)
    assert "distill at" in todo
    assert "search cpu at" in todo
    assert "distill scratch" not in todo


def steps_to_run(planned: Any) -> list[str]:
    """Of a plan's lines, whose steps have 32 characters."""
    lines = planned.out.splitlines()
    return [line[6:38].strip() for line in lines if line.startswith("run ")]


def test_a_rival_that_cannot_be_measured_leaves_the_student_measured(
    compared: Path,
    given: Path,
    ended: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = shutil.copytree(compared, tmp_path / "run")

    def fail(target: Any, builts: Sequence[Built], settings: Any) -> tuple[Measurement, ...]:
        if any(built.role == "scratch" for built in builts):
            raise RuntimeError("it does not run")
        return time_models(target, builts, settings)

    monkeypatch.setattr(local, "time_models", fail)
    anew = ("--compare", "scratch", "--set", "bench.min_time_s=0.06", "--target", "cpu")
    said = ended("run", *words(given, *anew, "--out", run))
    assert said.code in (6, 7)
    found = json.loads((run / "report/latest/results.json").read_text())
    assert [(f["role"], f["stage"]) for f in found["failures"]] == [("scratch", "measure")]
    assert {m["role"] for m in found["measurements"] if m["target"] == "cpu"} == {
        *("student", "teacher"),
    }
    (gain,) = found["figures"]["gains"]
    assert gain["fp32_db"]
    assert {one["why_not"] for one in gain["on"]} == {"the rival has no pixels there"}


def test_evidence_from_before_rivals_is_still_read(compared: Path) -> None:
    stored = json.loads((compared / "evidence.json").read_text())
    del stored["rivals"]
    assert decode(Evidence, stored).rivals == ()


@pytest.mark.parametrize(
    ("more", "what", "hint"),
    [
        (("--compare", "scrach"), "--compare: unknown method 'scrach'", "did you mean scratch?"),
        (("--compare", "logits"), "logits is how the student itself is taught", "scratch"),
        (("--compare", "logits+fakt"), "unknown loss 'fakt'", "fakd"),
        (("--compare", "GIVEN/plain ones.safetensors"), "no such file", "plain one.safetensors?"),
        (("--compare", "scratch,scratch"), "would be called 'scratch'", "rename"),
        (("--compare", "GIVEN/student.safetensors"), "as the run's own student is", "rename"),
        (("--compare", "GIVEN/x4.safetensors"), "its scale is x4, the teacher's x2", "same scale"),
        (
            ("--compare", "scratch", "--model", "GIVEN/student.safetensors"),
            "trains nothing",
            "checkpoint",
        ),
        (("--set", "gates.min_gain_retained=0.9"), "nobody to have a gain over", "--compare"),
    ],
)
def test_what_cannot_be_compared_is_told_before_any_training(
    given: Path, ended: Command, tmp_path: Path, more: tuple[str, ...], what: str, hint: str
) -> None:
    asked = [word.replace("GIVEN", str(given)) for word in more]
    said = ended("run", *words(given, *asked, "--out", tmp_path / "run"))
    assert said.code == 2
    assert what in said.err
    assert hint in said.err.split("hint:")[1]
    assert not (tmp_path / "run" / "distill").exists()


def test_a_finished_student_is_compared_with_files_alone(
    given: Path, ended: Command, tmp_path: Path
) -> None:
    shutil.copy(given / "plain one.safetensors", tmp_path / "plain.safetensors")
    (tmp_path / "c.toml").write_text("compare = ['plain.safetensors']\n")
    finished = ("--model", given / "student.safetensors", "--config", tmp_path / "c.toml")
    planned = ended("plan", *words(given, *finished, "--out", tmp_path / "run"))
    assert "identify plain" in planned.out
    assert "distill" not in planned.out
