"""What a machine is set to belongs to its figures: they are not used again under other settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mipkd.core import records
from mipkd.core.errors import StageError
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built
from pipeline.bench.board import describe_changes, read_settings
from pipeline.bench.host import describe_host
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import time_models
from pipeline.config import Config
from pipeline.contenders import Contender
from pipeline.context import RunContext
from pipeline.inputs import Images
from pipeline.machine.base import DeviceConfig, Job, Machine, connect
from pipeline.machine.local import Local
from pipeline.on_target import OnTarget
from pipeline.run import Run
from pipeline.stage import NotInKey, Ref, ready
from pipeline.stages.measure import MeasureInputs, measure
from targets.base import Session
from targets.null import Null

QUICK = BenchSettings(
    sizes=((8, 8),), warmup_s=0, min_time_s=0.01, max_time_s=1, max_drift=50, max_busy=1
)


class Board:
    """A `nvpmodel` of our own on PATH: what a Jetson answers when it is asked for its mode."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._program = folder / "nvpmodel"

    def set_mode(self, name: str, number: int) -> None:
        self._program.write_text(f"#!/bin/sh\necho 'NV Power Mode: {name}'\necho {number}\n")
        self._program.chmod(0o755)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Board(tmp_path / "bin")


@pytest.fixture(params=["local", "fake"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    config = DeviceConfig("fake://board") if request.param == "fake" else DeviceConfig()
    with connect(config) as found:
        yield found


def built_in(folder: Path) -> Built:
    (folder / "model.onnx").write_bytes(b"")
    return Built("null", "fp32", "student", folder / "model.onnx", 1, scale=2, multiple=1)


def measure_again(run: Run, machine: Machine, folder: Path) -> Ref[tuple[Measurement, ...]]:
    """The step of a run that was started by the same command."""
    tests = records.TestSet(folder, "", "none", 2, (), "published")
    info = machine.offers(["null"])["null"]
    inputs = MeasureInputs(QUICK, info, (ready(built_in(folder)),), ready(tests), NotInKey(machine))
    return run.step(measure, inputs, label="null")


def test_another_power_mode_is_measured_anew(
    machine: Machine, board: Board, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    for name, number in (("15W", 0), ("MAXN", 2), ("15W", 0)):
        board.set_mode(name, number)
        mode = measure_again(run, machine, tmp_path).value[0].conditions["power mode"]
        assert mode == f"{name} ({number})"
    assert [event.remembered for event in run.events] == [False, False, True]
    assert 'info.settings.power mode "15W (0)" -> "MAXN (2)"' in run.events[1].why


def test_a_mode_that_changed_before_the_job_gives_no_figures(
    machine: Machine, board: Board, tmp_path: Path
) -> None:
    board.set_mode("15W", 0)
    job = Job(machine.offers(["null"])["null"], (built_in(tmp_path),), QUICK)
    board.set_mode("MAXN", 2)
    with pytest.raises(StageError, match=r"not what it was: power mode 15W \(0\), then MAXN \(2\)"):
        machine.run(job)


def test_a_mode_that_changed_meanwhile_makes_figures_invalid(board: Board, tmp_path: Path) -> None:
    class Restless(Null):
        def open(self, built: Built) -> Session:
            board.set_mode("MAXN", 2)
            return super().open(built)

    board.set_mode("15W", 0)
    (one,) = time_models(Restless(), [built_in(tmp_path)], QUICK)
    assert one.invalid_because == (
        "settings changed while measured: power mode 15W (0), then MAXN (2)"
    )


def test_limits_of_clocks_are_no_setting_while_the_board_cools_itself(tmp_path: Path) -> None:
    gpu, cooling = "sys/class/devfreq/17000000.gpu", "sys/class/thermal/cooling_device0"
    files = {
        f"{gpu}/max_freq": "1020000000",
        f"{gpu}/min_freq": "306000000",
        f"{gpu}/cur_freq": "612000000",
        f"{gpu}/device/tpc_pg_mask": "252",
        "sys/kernel/nvpmodel_clk_cap/emc": "3199000000",
        f"{cooling}/type": "devfreq-17000000.gpu",
        f"{cooling}/cur_state": "0",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cool = {
        "GPU clock floor": "306 MHz",
        "GPU parts switched off": "252",
        "memory clock limit": "3199 MHz",
        "GPU clock limit": "1020 MHz",
    }
    assert read_settings(tmp_path) == cool
    (tmp_path / gpu / "max_freq").write_text("612000000")
    assert describe_changes(cool, read_settings(tmp_path)) == (
        "GPU clock limit 1020 MHz, then 612 MHz"
    )
    (tmp_path / cooling / "cur_state").write_text("2")
    assert describe_changes(cool, read_settings(tmp_path)) == ""


def test_models_are_not_built_anew_for_another_power_mode(board: Board, tmp_path: Path) -> None:
    photos, tests, patches, graph = (Ref[Any](name, None) for name in ("p", "t", "c", "g"))
    student, run = Contender("student", graph=graph), Run(tmp_path / "run", dry=True)
    for name, number in (("15W", 0), ("MAXN", 2)):
        board.set_mode(name, number)
        info = Local().offers(["null"])["null"]
        on = RunContext(Config(), run, Local(), describe_host(), (info,))
        here = OnTarget(on, info, Images(photos, tests), patches, None)
        here.build([student])
        here.measure()
    keys = [event.key for event in run.events]
    assert [event.stage for event in run.events] == ["build", "measure", "measure"]
    assert keys[1] != keys[2]
