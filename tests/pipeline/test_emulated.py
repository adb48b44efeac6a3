"""A machine that is emulated: it is recognised, its pixels count and its times do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mipkd.core import codec
from mipkd.core.evidence import Outcome
from mipkd.core.measurement import ImageScore, Measurement
from mipkd.core.records import Built
from pipeline.bench import host, models
from pipeline.bench.comparisons import RAN_EMULATED, emulated_targets, simulated_targets
from pipeline.bench.host import describe_host, is_emulated
from pipeline.bench.latency import BenchSettings
from pipeline.doctor import describe_machine
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge
from pipeline.report.tables import _names
from targets.base import find

QEMU = "Name:\tqemu-aarch64\nUmask:\t0022"
SETTINGS = BenchSettings(sizes=((8, 8),), min_time_s=0.01, max_time_s=0.01)


@pytest.mark.parametrize(
    ("kernel", "status", "machine", "emulated"),
    [
        ("x86_64", "Name:\tpython3", "aarch64", True),
        ("aarch64", "Name:\tpython3", "x86_64", True),
        ("", QEMU, "riscv64", True),
        ("x86_64", "Name:\tpython3", "x86_64", False),
        ("aarch64", "Name:\tpython3", "armv7l", False),  # it runs them itself
        ("", "", "arm64", False),  # no Linux
    ],
)
def test_the_kernel_tells_whose_processor_it_is(
    kernel: str, status: str, machine: str, emulated: bool, tmp_path: Path
) -> None:
    for name, text in (("proc/sys/kernel/arch", kernel), ("proc/self/status", status)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if text:
            (tmp_path / name).write_text(text)
    assert is_emulated(tmp_path, machine) == emulated


@pytest.fixture
def emulated_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, as qemu-user would show it."""
    monkeypatch.setattr(host, "is_emulated", lambda: True)
    monkeypatch.setattr(models, "is_emulated", lambda: True)


def built(folder: Path) -> Built:
    (folder / "model.onnx").write_bytes(b"0")
    return Built("null", "fp32", "student", folder / "model.onnx", 1, 2, 1)


@pytest.mark.usefixtures("emulated_host")
def test_nothing_is_timed_there_and_what_it_offers_is_told(tmp_path: Path) -> None:
    info = models.probe_target("null")
    assert (info.simulated, info.emulated, info.host.emulated) == (True, True, True)
    (found,) = models.time_models(find("null"), [built(tmp_path)], SETTINGS)
    assert (found.kind, found.latencies) == ("emulated", ())
    assert codec.decode(Measurement, codec.encode(found)) == found


def test_here_the_same_is_measured(tmp_path: Path) -> None:
    assert not describe_host().emulated
    (found,) = models.time_models(find("null"), [built(tmp_path)], SETTINGS)
    assert (found.kind, len(found.latencies)) == ("measured", 1)


def scored(target: str, db: Sequence[float], **more: bool) -> Measurement:
    scores = tuple(ImageScore(f"{n}", {"psnr_y": one}) for n, one in enumerate(db))
    return Measurement("student", target, "fp32", scores=scores, **more)  # type: ignore[arg-type]


def test_it_is_called_emulated_and_is_no_device_to_ship_for() -> None:
    db = np.linspace(30, 35, 6).tolist()
    there = scored("ncnn", db, simulated=True, emulated=True)
    reference = scored("reference", db)
    bicubic = replace(scored("reference", [one - 2 for one in db]), role="bicubic")
    verdict = judge(GateConfig(max_latency_ms=12), [reference, bicubic, there], [])
    (one,) = verdict.recommended
    assert (one.precision, one.reason) == ("", RAN_EMULATED)
    latency = next(gate for gate in verdict.gates if gate.name == "latency")
    assert (latency.outcome, latency.reason) == (Outcome.INVALID, RAN_EMULATED)
    assert f"ncnn: {RAN_EMULATED}" in verdict.remarks
    assert (simulated_targets([there]), emulated_targets([there])) == ([], ["ncnn"])
    assert _names(there)[0] == "ncnn (emulated)"


def test_doctor_says_so() -> None:
    one = {"why_not": "", "precisions": ["fp32"], "cannot_build": {}, "remark": ""}
    machine = codec.encode(describe_host())
    flags = {"simulated": True, "emulated": True}
    said = describe_machine({"host": machine, "targets": {"cpu": {**one, **flags}}, "metrics": {}})
    assert "yes   fp32 (emulated, not timed)" in said
