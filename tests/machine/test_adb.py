"""An Android phone on adb, played by a program: LiteRT's models run there and are timed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mipkd.core.errors import MissingError, StageError, UsageError
from mipkd.core.records import Built, Graph
from pipeline.bench.latency import BenchSettings
from pipeline.bench.models import make_pixels
from pipeline.bundle.kit import pack_kit
from pipeline.machine.adb import Phone
from pipeline.machine.base import DeviceConfig, Job, Machine, MachineLostError, connect
from pipeline.machine.kit import Kit
from pipeline.machine.remote.adb_shell import AdbShell, serial_of
from pipeline.machine.remote.benchmark_model import Started, parse_timing
from pipeline.machine.remote.phone import read_thermal
from targets.base import BuildRequest, ByteArray, Pixels, find

from .conftest import job_of

pytestmark = pytest.mark.skipif(bool(find("litert").why_not()), reason="needs ai-edge-litert")
PLAYED = Path(__file__).with_name("phone")
PROPERTIES = {
    "ro.product.manufacturer": "Acme",
    "ro.product.model": "Nine",
    "ro.soc.model": "AC123",
    "ro.build.version.release": "15",
    "ro.build.id": "AP1A.240505",
    "ro.product.cpu.abi": "arm64-v8a",
}
COOL = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=88.0, mType=0, mName=CPU0, mStatus=3}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=36.5, mType=3, mName=skin, mStatus=0}
\tTemperature{mValue=41.2, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=4200.0, mType=6, mName=vbat, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is a phone, with adb on PATH; its programs answer as a phone's do."""
    here, there = tmp_path / "here", tmp_path / "phone"
    for folder in (here, there / "bin", there / "tmp"):
        folder.mkdir(parents=True)
    shutil.copy(PLAYED / "adb", here)
    cases = "\n".join(f"{name}) echo {value};;" for name, value in PROPERTIES.items())
    say(there, "getprop", f"case $1 in\n{cases}\nesac")
    say(there, "python3", f'exec {sys.executable} "$@"')  # with LiteRT
    (there / "thermal").write_text(COOL)
    say(there, "dumpsys", f"cat {there}/thermal")
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PHONE", str(there))
    return there


def say(phone: Path, program: str, script: str) -> None:
    file = phone / "bin" / program
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def config_of(address: str = "adb://") -> DeviceConfig:
    program = PLAYED / "benchmark_model"
    return DeviceConfig(address, benchmark_model=program)


@pytest.fixture
def machine(phone: Path) -> Iterator[Machine]:
    with connect(config_of()) as found:
        yield found


@pytest.fixture(scope="module")
def model(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return find("litert").build(BuildRequest(graph, "fp32", tmp_path_factory.mktemp("litert")))


@pytest.fixture(scope="module")
def on_bytes(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, ...]:
    """Models that take and give uint8, and int8."""
    kinds: tuple[Pixels, ...] = ("uint8", "int8")
    return tuple(replace(built_on(kind, graph, tmp_path_factory), role=kind) for kind in kinds)


def built_on(kind: Pixels, graph: Graph, folders: pytest.TempPathFactory) -> Built:
    request = BuildRequest(graph, "fp16", folders.mktemp(kind), pixels=kind)
    return find("litert").build(request)


def test_it_says_what_phone_it_is_and_offers_litert_alone(machine: Machine) -> None:
    offered = machine.offers(["litert", "cpu"])
    assert offered["cpu"].why_not == "a phone on adb runs litert alone"
    info = offered["litert"]
    assert (info.why_not, info.simulated, info.local) == ("", False, False)
    assert info.host.cpu == "Acme Nine, AC123"
    assert info.host.system.startswith("Android 15 ")
    assert info.versions["android"] == "15 AP1A.240505"
    assert len(info.versions["benchmark_model"]) == 12


def test_its_pixels_are_litert_s_and_its_samples_raw(
    machine: Machine, model: Built, on_bytes: tuple[Built, ...], phone: Path
) -> None:
    job, pixels, here = job_of(machine, model, images=1), list[ByteArray](), list[ByteArray]()
    job = replace(job, builts=(model, *on_bytes))
    found = machine.run(job, lambda _b, _n, sr: pixels.append(sr))
    make_pixels(find("litert"), job.builts, job.images, lambda _b, _n, sr: here.append(sr))
    assert len(pixels) == len(here) == 3
    for sr, wanted in zip(pixels, here, strict=True):
        assert np.abs(sr.astype(int) - wanted).max() <= 1
    for one in (latency for m in found for latency in m.latencies):
        assert one.size == (32, 32)
        assert len(one.samples_s) == 6  # two of a start, at least five
        assert min(one.samples_s) > 0
        assert one.memory_bytes == round(46.0859 * 2**20)
    assert found[0].host == job.info.host
    assert found[0].conditions["temperature after"] == "CPU0 41.2 °C"
    assert found[0].conditions["thermal status after"] == "NONE"
    assert (found[0].invalid_because, found[0].notes) == ("", ())
    (phone / "tmp/mipkd-pipeline/other.tflite").touch()  # a user's
    machine.close()
    assert sorted(f.name for f in (phone / "tmp/mipkd-pipeline").iterdir()) == [
        "benchmark_model",
        "other.tflite",
    ]


def test_a_kit_measures_on_a_phone_and_its_results_are_taken(
    model: Built, phone: Path, tmp_path: Path
) -> None:
    settings = BenchSettings(sizes=((16, 24),), warmup_s=0.01, min_samples=5, max_drift=9)
    images = [("baby", np.random.default_rng(1).integers(0, 256, (9, 13, 3), dtype=np.uint8))]
    kit = tmp_path / "kit-litert.pyz"
    kit.write_bytes(pack_kit("run", "litert", [model], images, settings))
    command = [sys.executable, "-I", str(kit), "--adb", "PHONE1"]
    command += ["--benchmark-model", str(PLAYED / "benchmark_model")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "[1/1]" in ran.stdout
    machine, pixels = Kit(tmp_path / "results.zip"), list[ByteArray]()
    assert machine.info.host.cpu == "Acme Nine, AC123"
    job = Job(machine.info, (model,), settings, images)
    (m,) = machine.run(job, lambda _b, _n, sr: pixels.append(sr))
    assert len(m.latencies[0].samples_s) == 6
    assert pixels[0].shape == (18, 26, 3)


def test_a_phone_that_is_slowed_down_measures_nothing(model: Built, phone: Path) -> None:
    (phone / "thermal").write_text(COOL.replace("Status: 0", "Status: 2", 1))
    (phone / "printed").write_text(OLDER)
    program = phone / "program"
    program.write_text(f"#!/bin/sh\ncat {phone}/printed\n")
    with connect(replace(config_of(), benchmark_model=program)) as machine:
        (m,) = machine.run(job_of(machine, model, images=0))
    assert m.latencies[0].samples_s == (0.2495,) * 6
    assert m.invalid_because == "throttled: Android's thermal status was MODERATE (2), not NONE (0)"


def test_a_phone_that_does_not_tell_is_not_called_cool(phone: Path) -> None:
    (phone / "thermal").write_text("Can't find service: thermalservice\n")
    found = read_thermal(AdbShell("adb://"))
    assert (found.is_known, found.throttled, found.conditions("before")) == (False, "", {})


def test_a_phone_without_the_program_says_how_to_get_it(phone: Path) -> None:
    with connect(replace(config_of(), benchmark_model=None)) as machine:
        why = machine.offers(["litert"])["litert"].why_not
    assert "no benchmark_model in /data/local/tmp/mipkd-pipeline there" in why
    assert "--set device.benchmark_model=FILE" in why


def test_a_phone_that_is_gone_is_lost(machine: Machine, model: Built, phone: Path) -> None:
    job = job_of(machine, model)
    (phone / "gone").touch()
    with pytest.raises(MachineLostError, match="no devices/emulators found") as raised:
        machine.run(job)
    assert "USB debugging" in raised.value.hint


def test_one_of_several_is_named_by_its_serial_number(phone: Path) -> None:
    with connect(config_of("adb://PHONE1")) as machine:
        assert not machine.offers(["litert"])["litert"].why_not
    with connect(config_of("adb://PHONE2")) as machine, pytest.raises(MachineLostError):
        machine.offers(["litert"])


@pytest.mark.parametrize("address", ["adb://a b", "adb://-s", "adb://x;reboot", "adb:/x"])
def test_a_strange_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        serial_of(address)


def test_a_folder_of_a_phone_begins_at_its_root(phone: Path) -> None:
    with pytest.raises(UsageError, match="'~/here' is no folder of a phone") as raised:
        Phone(DeviceConfig("adb://", folder="~/here"))
    assert "/data/local/tmp/mipkd-pipeline" in raised.value.hint


def test_no_adb_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="there is no adb here"):
        Phone(DeviceConfig("adb://"))


def test_what_its_program_cannot_do_is_said_in_its_own_words(
    machine: Machine, model: Built, phone: Path
) -> None:
    job, broken = job_of(machine, model, images=0), phone / "broken"
    broken.write_text("#!/bin/sh\necho INFO: STARTING!\necho ERROR: Failed to load >&2; exit 1\n")
    with (
        connect(replace(config_of(), benchmark_model=broken)) as other,
        pytest.raises(StageError, match="benchmark_model: ERROR: Failed to load"),
    ):
        other.run(job)


NEWER = """INFO: Initialized session in 119.515ms.
INFO: Running benchmark for at least 3 iterations and at least 0.3 seconds but terminate if ...
INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=1 p5=1 median=1 p95=1

INFO: Running benchmark for at least 2 iterations and at least 0 seconds but terminate if ...
INFO: count=2 first=52162 curr=49785 min=49785 max=52162 avg=50973.5 std=1 p5=1 median=1 p95=1

INFO: Inference timings in us: Init: 119515, First inference: 87112, Warmup (avg): 5, Inference 5
INFO: Memory footprint delta from the start of the tool (MB): init=55.4961 overall=56.5
"""
OLDER = """count=4 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442
count=2 curr=249500(all same)
Inference timings in us: Init: 16242, First inference: 360262, Warmup (avg): 304586, Inference 5
Peak memory footprint (MB): init=4.92969 overall=138.5
"""


def test_what_the_program_prints_is_read_in_its_newer_and_older_words() -> None:
    newer = Started((0.052162, 0.049785), 8, 0.119515, 0.087112, round(56.5 * 2**20))
    older = Started((0.2495, 0.2495), 3, 0.016242, 0.360262, round(138.5 * 2**20))
    for printed, wanted in ((NEWER, newer), (OLDER, older)):
        found = parse_timing(printed)
        assert found.samples_s == pytest.approx(wanted.samples_s)
        assert replace(found, samples_s=wanted.samples_s) == wanted
    with pytest.raises(StageError, match="it printed nothing"):
        parse_timing("")
