"""`--device` from end to end: the same quality as here, failures as rows, and what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mipkd.core import plugins
from mipkd.core.images import write_png
from pipeline import cli
from pipeline.machine.base import DeviceConfig, connect
from pipeline.stage import NotInKey, ready

from .conftest import BarePython, Sshd, gone
from .test_ssh import in_the_meantime

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny x2 student as ONNX, and images."""
    import torch

    from mipkd.export.onnx import export

    root = tmp_path_factory.mktemp("inputs")
    arch = plugins.load("mipkd.archs", "edsr", "ARCH")
    torch.manual_seed(0)
    made = arch.make(arch.shrink(arch.paper(2), "c8b2")).eval()
    graph = export(made, out=root, metadata={}, role="student", family="edsr")
    for seed, folder in enumerate(("photos", "val")):
        (root / folder).mkdir()
        for number in range(2):
            steps = np.random.default_rng((seed, number)).integers(-9, 10, (100, 112, 3)).cumsum(1)
            photo = np.clip(128 + steps, 0, 255).astype(np.uint8)
            write_png(root / folder / f"{number}.png", photo)
    given = ["--model", str(graph.file), "--scale", "2", "--target", "cpu"]
    given += ["--data", str(root / "photos"), "--val", str(root / "val")]
    quick: dict[str, object] = {
        "bench.sizes": "[[16, 16]]",
        "bench.min_time_s": 0.1,
        "bench.warmup_s": 0.02,
        "bench.max_drift": 9,
        "bench.max_busy": 1,
        "calibrate.size": 24,
        "gates.min_gain_over_bicubic_db": "off",
        "quantize.search": "false",  # which is of this machine alone
    }
    for name, value in quick.items():
        given += ["--set", f"{name}={value}"]
    return given


@pytest.fixture
def command(inputs: list[str], request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """`run` or `plan`, on the device if asked for."""

    def start(name: str, *more: str, there: bool = True, **changes: object) -> Result:
        given = [*inputs, "--out", str(tmp_path / "run"), *more]
        if there:
            config = request.getfixturevalue("config")
            given += ["--device", config.address or "", *settings(config, **changes)]
        return CliRunner().invoke(cli.app, [name, *given])

    return start


def settings(config: DeviceConfig, **changes: object) -> list[str]:
    asked = {n: getattr(config, n) for n in ("python", "folder", "ssh_config", "pause_s")}
    pairs = (asked | changes).items()
    return [part for n, v in pairs for part in ("--set", f"device.{n}={v}")]


def results_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report/latest/results.json").read_text())
    return found


def quality(results: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {
        (m["precision"], image["image"]): image["metrics"]["psnr_y"]
        for m in results["measurements"]
        if m["target"] == "cpu"
        for image in m["scores"]
    }


def test_a_whole_run_on_the_fake_machine_has_the_quality_of_one_here(
    command: Command, tmp_path: Path
) -> None:
    assert command("run", there=False).exit_code in (0, 6, 7)
    at_home = results_in(tmp_path / "run")
    ended = command("run", "--device", "fake://board", there=False)
    assert ended.exit_code in (0, 6, 7), ended.stderr
    results = results_in(tmp_path / "run")
    assert quality(results) == quality(at_home)
    assert len(quality(results)) == 4
    on = [m for m in results["measurements"] if m["target"] == "cpu"]
    assert all(m["device"] == "fake://board" and m["latencies"] for m in on)
    assert "cpu on fake://board" in (tmp_path / "run/report/latest/index.html").read_text()
    again = command("plan", "--device", "fake://board", there=False)
    assert again.stdout.splitlines()[-1].startswith("0 of ")


def test_quality_is_that_of_a_run_here_and_the_page_names_the_device(
    command: Command, config: DeviceConfig, tmp_path: Path
) -> None:
    here = command("run", there=False)
    assert here.exit_code in (0, 6, 7), here.stderr
    at_home = quality(results_in(tmp_path / "run"))
    planned = command("plan")
    assert planned.exit_code == 0, planned.stderr
    assert "run   measure cpu" in planned.stdout
    elsewhere = command("run")
    assert elsewhere.exit_code in (0, 6, 7), elsewhere.stderr
    results = results_in(tmp_path / "run")
    away = quality(results)
    assert len(away) == 4
    assert away.keys() == at_home.keys()
    assert all(abs(away[key] - at_home[key]) < 1e-6 for key in away)
    on = [m for m in results["measurements"] if m["target"] == "cpu"]
    assert all(m["device"] == "ssh://board" and m["host"]["cores"] > 0 for m in on)
    assert all(m["latencies"][0]["samples_s"] for m in on)
    page = (tmp_path / "run/report/latest/index.html").read_text()
    assert "Measured elsewhere: cpu on ssh://board: " in page
    again = command("plan", tries=9)
    assert again.stdout.splitlines()[-1].startswith("0 of ")  # how it is reached is no result
    assert gone(config.folder)


def test_a_device_that_vanishes_is_a_row_of_the_report_and_tried_again(
    command: Command, config: DeviceConfig, sshd: Sshd, tmp_path: Path
) -> None:
    working = "*/done"
    thread = in_the_meantime(lambda: any(Path(config.folder, "jobs").glob(working)), sshd.cut)
    slow = ("--precision", "fp32", "--set", "bench.min_time_s=1.5")
    first = command("run", *slow, tries=0)
    thread.join()
    assert first.exit_code == 7, first.stderr
    (failure,) = results_in(tmp_path / "run")["failures"]
    assert failure["stage"] == "measure"
    assert "ssh://board: connection lost for good" in failure["what"]
    second = command("run", *slow)
    assert second.exit_code in (0, 6, 7), second.stderr
    assert results_in(tmp_path / "run")["failures"] == []
    assert gone(config.folder, within_s=10)


def test_a_target_that_is_missing_there_ends_the_run_before_any_work(
    command: Command, python_with: BarePython, tmp_path: Path
) -> None:
    for name in ("run", "plan"):
        ended = command(name, python=python_with("numpy"))
        assert ended.exit_code == 4
        assert "target cpu on ssh://board: onnxruntime is not installed" in ended.stderr
    assert not list((tmp_path / "run").glob("*/*/record.json"))


def test_doctor_tells_what_a_device_can_do(config: DeviceConfig) -> None:
    given = ["doctor", "--device", "ssh://board", "--json", *settings(config)]
    ended = CliRunner().invoke(cli.app, given)
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["targets"]["cpu"]["usable"]
    assert not found["targets"]["openvino"]["usable"]
    assert "torch" not in found["targets"]["cpu"]["versions"]


def test_students_are_timed_on_the_device_that_they_are_fitted_to(
    config: DeviceConfig, tmp_path: Path
) -> None:
    from mipkd.core.records import PatchSet
    from mipkd.distill.teacher import describe, save
    from pipeline.stages.fit import FitInputs, fit

    arch = plugins.load("mipkd.archs", "edsr", "ARCH")
    hyper, file = arch.shrink(arch.paper(2), "c64b8"), tmp_path / "teacher.safetensors"
    save(arch.make(hyper), arch, hyper, file, licence="unknown")
    teacher = describe(arch, hyper, role="teacher", file=file, licence="unknown")
    (tmp_path / "fit").mkdir()
    with connect(config) as machine:
        info = machine.offers(["cpu"])["cpu"]
        patches = PatchSet(tmp_path, "", "", 0, (0, 0))
        nets = (ready(teacher), ready(patches))
        inputs = FitInputs("edge:c16b3", (16, 16), info, ("fp32",), *nets, NotInKey(machine))
        (found,) = fit.function(inputs, out=tmp_path / "fit")
    assert found.precision == "fp32"
    assert 0 < found.p90_ms <= found.most_ms
    assert gone(config.folder)


def test_a_bundle_keeps_the_devices_address_to_itself_and_is_timed_there(
    command: Command, config: DeviceConfig, tmp_path: Path
) -> None:
    assert command("run").exit_code in (0, 7)
    bundle = tmp_path / "run" / "bundle"
    for file in (f for f in bundle.rglob("*") if f.is_file()):
        assert b"ssh://" not in file.read_bytes(), file
    written = json.loads((bundle / "bench/cpu-int8.json").read_text())
    assert written["host"]["cores"] >= 1
    given = ["bench", str(bundle), "--device", config.address or "", *settings(config)]
    given += ["--set", "bench.sizes=[[9, 8]]", "--json", str(tmp_path / "b.json")]
    said = CliRunner().invoke(cli.app, given)
    assert said.exit_code in (0, 7), said.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    assert [one["size"] for m in found["measurements"] for one in m["latencies"]] == [[9, 8]] * 2
    assert "torch" not in found["measurements"][0]["versions"]
