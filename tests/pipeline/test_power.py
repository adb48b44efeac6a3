"""Power meters: a `tegrastats` of our own on PATH, planted files of the kernel, whole frames."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.bench.power import joules_per_frame, power_source, watts_of, why_unmetered

ORIN_NANO = (
    "09-18-2025 10:11:12 RAM 2840/7620MB (lfb 512x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [25%@1420,off,off,20%@1420] EMC_FREQ 0%@2133 GR3D_FREQ 76%@[611] APE 174 "
    "cpu@47.1C gpu@46C tj@47.3C VDD_IN 4940mW/4870mW VDD_CPU_GPU_CV 560mW/540mW"
    " VDD_SOC 1080mW/990mW"
)
NANO = (
    "RAM 1655/3956MB (lfb 311x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [12%@102,10%@102,11%@102,12%@102] EMC_FREQ 3%@1600 GR3D_FREQ 0%@76 APE 25 PLL@36.5C "
    "AO@47.5C thermal@38C POM_5V_IN 2532/2532 POM_5V_GPU 78/78 POM_5V_CPU 275/275"
)
AGX_ORIN = (
    "RAM 13983/62780MB (lfb 424x4MB) NVDLA0_FREQ @1600 tj@77.2C VDD_GPU_SOC 3150mW/2971mW "
    "VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
AGX_XAVIER = (
    "RAM 1903/15692MB (lfb 3251x4MB) GPU@32C CPU@33.5C GPU 0/0 CPU 216/216 SOC 864/864 CV 0/0 "
    "VDDRQ 144/144 SYS5V 1889/1889"
)
# Of a published log of JetPack 7.2: a third figure a rail. NC is of one of JetPack 5.
AGX_ORIN_JETPACK_7 = (
    "RAM 20642/62817MB (lfb 1x2MB) GR3D_FREQ 12%@[1300,1300] APE 174 cpu@52.968C/52.968C "
    "VDD_GPU_SOC 5139mW/5140mW/5141mW VDD_CPU_CV 3268mW/3269mW/3270mW "
    "VIN_SYS_5V0 5500mW/5501mW/5502mW NC 40mW/40mW/40mW"
)
THOR = "RAM 9/125772MB VDD_GPU -392mW/0mW VDD_CPU_SOC_MSS 3924mW/3900mW VIN 23000mW/22000mW"
SEES = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to see processes")


@pytest.fixture
def tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a `tegrastats` on PATH that prints a line over and over; gives the file of its pids."""
    pids = tmp_path / "pids"

    def make(line: str, *, times: str = "while :") -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        file = tmp_path / "bin" / "tegrastats"
        file.write_text(
            f"#!/bin/sh\necho $$ >> {pids}\n{times}; do echo '{line}'; sleep 0.02; done\n"
        )
        file.chmod(0o755)
        return pids

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return make


def running(pids: Path) -> list[int]:
    """Those of the noted processes that are there, zombies too."""
    return [int(pid) for pid in pids.read_text().split() if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("line", "watts", "rails"),
    [
        (ORIN_NANO, 4.94, "VDD_IN"),
        (NANO, 2.532, "POM_5V_IN"),
        (AGX_ORIN, 22.43, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
        (AGX_XAVIER, 3.113, "GPU + CPU + SOC + CV + VDDRQ + SYS5V"),
        (AGX_ORIN_JETPACK_7, 13.907, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
        ("RAM 1/2MB VDD_IN 5765/5700/5900 VDD_SOC 1497/1400/1500", 5.765, "VDD_IN"),
        ("RAM 1/2MB VDD_GPU_SOC 2399mW/2400mW NC 7mW/7mW NC_2 7mW/7mW", 2.399, "VDD_GPU_SOC"),
        (THOR, 23.0, "VIN"),
        ("RAM 1/2MB VDD_IN 5765mW VDD_SOC 1497mW", 5.765, "VDD_IN"),
    ],
)
def test_lines_of_every_generation_are_read(line: str, watts: float, rails: str) -> None:
    told = watts_of(line)
    assert told is not None
    assert told[0] == pytest.approx(watts)
    assert told[1] == rails


@pytest.mark.parametrize(
    "line",
    [
        "",
        NANO.partition(" POM")[0],  # a board without sensors
        "RAM 1/2MB NC 0mW/0mW NC 0mW/0mW",
        "RAM 1/2MB VDD_IN 1/2/3/4",  # nothing known
        "POM_5V_GPU 8791/8742 POM_5V_IN 3075/3086 POM_5V_CPU 3109/3134",  # names mixed up
    ],
)
def test_lines_that_tell_no_power_give_none(line: str) -> None:
    assert watts_of(line) is None


@SEES
@pytest.mark.parametrize(("line", "watts"), [(ORIN_NANO, 4.94), (NANO, 2.532)])
def test_joules_are_power_times_time(
    tegrastats: Callable[[str], Path], line: str, watts: float, tmp_path: Path
) -> None:
    pids = tegrastats(line)
    source = power_source(tmp_path)
    assert source is not None
    energy = joules_per_frame(lambda: time.sleep(0.05), source, 0.3)
    assert energy is not None
    assert energy.mean_watts == pytest.approx(watts)
    assert 2 <= energy.frames <= 6
    assert energy.joules_per_frame == pytest.approx(watts * energy.seconds / energy.frames)
    assert energy.source.startswith("tegrastats ")
    assert running(pids) == []


@SEES
def test_no_child_is_left_when_the_model_raises(
    tegrastats: Callable[[str], Path], tmp_path: Path
) -> None:
    pids, seen = tegrastats(ORIN_NANO), []

    def call() -> None:
        if seen:
            seen.append(running(pids))
            raise RuntimeError("the model")
        seen.append([])

    source = power_source(tmp_path)
    assert source is not None
    with pytest.raises(RuntimeError, match="the model"):
        joules_per_frame(call, source)
    assert len(seen[-1]) == 1  # it was there
    assert running(pids) == []


@SEES
def test_a_child_that_ignores_the_signal_is_ended(
    tegrastats: Callable[..., Path], tmp_path: Path
) -> None:
    pids = tegrastats(ORIN_NANO, times="trap '' TERM; while :")
    assert power_source(tmp_path) is not None
    assert running(pids) == []


@SEES
def test_a_child_ends_when_its_parent_is_killed(
    tegrastats: Callable[[str], Path], tmp_path: Path
) -> None:
    pids = tegrastats(ORIN_NANO)
    script = (
        "import time; from pathlib import Path; from pipeline.bench.power import power_source\n"
        f"source = power_source(Path({str(tmp_path)!r}))\n"
        "source.mean_watts(lambda: (print('running', flush=True), time.sleep(60)))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent, parent.stdout:
        parent.stdout.readline()
        assert len(running(pids)) == 1
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while running(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(pids) == []


def test_a_meter_that_falls_silent_gives_no_figure(
    tegrastats: Callable[..., Path], tmp_path: Path
) -> None:
    tegrastats(ORIN_NANO, times="for n in 1 2 3 4 5")
    source = power_source(tmp_path)
    assert source is not None
    assert joules_per_frame(lambda: time.sleep(0.05), source, 0.4) is None


INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/"


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_sensors_are_read_directly_without_the_program(tmp_path: Path) -> None:
    rails = {"VDD_GPU_SOC": (12000, 500), "VDD_CPU_CV": (12000, 250), "NC": (0, 0)}
    files = {f"{INA}in7_label": "sum of shunt voltages\n", f"{INA}in7_input": "999\n"}
    for channel, (name, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        files[f"{INA}in{channel}_label"] = f"{name}\n"
        files[f"{INA}in{channel}_input"] = f"{millivolts}\n"
        files[f"{INA}curr{channel}_input"] = f"{milliamperes}\n"
    source = power_source(plant(tmp_path, files))
    assert source is not None
    assert source.name == "INA3221 VDD_GPU_SOC + VDD_CPU_CV"
    energy = joules_per_frame(lambda: time.sleep(0.02), source, 0.35)
    assert energy is not None
    assert energy.mean_watts == pytest.approx(9.0)


def test_counters_of_x86_are_read_across_their_end(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}
    files = {}
    for zone, name in zones.items():
        files[f"sys/class/powercap/{zone}/name"] = f"{name}\n"
        files[f"sys/class/powercap/{zone}/energy_uj"] = "5000000\n"
        files[f"sys/class/powercap/{zone}/max_energy_range_uj"] = "9000000\n"
    source = power_source(plant(tmp_path, files))
    assert source is not None
    assert source.name == "RAPL package-0 + dram"

    def call() -> None:  # 6 J of the package, 5 to 2 of 9; 1 J of memory
        plant(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "2000000"})
        plant(tmp_path, {"sys/class/powercap/intel-rapl:0:1/energy_uj": "6000000"})

    seconds = 0.0

    def work() -> None:
        nonlocal seconds
        start = time.perf_counter()
        call()
        time.sleep(0.1)
        seconds = time.perf_counter() - start

    watts = source.mean_watts(work)
    assert watts is not None
    assert watts * seconds == pytest.approx(7.0, rel=0.05)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that everybody may enter; the test itself may read no file that is root's alone."""
    folder, user = Path(tempfile.mkdtemp(dir="/tmp")), os.geteuid()
    folder.chmod(0o755)
    yield folder
    if user == 0:
        os.seteuid(0)
    shutil.rmtree(folder)


@pytest.mark.parametrize("file", ["sys/class/powercap/intel-rapl:0/energy_uj", f"{INA}curr1_input"])
def test_a_meter_that_only_root_may_read_is_named(file: str, nobody: Path) -> None:
    plant(
        nobody, {"sys/class/powercap/intel-rapl:0/name": "package-0", f"{INA}in1_label": "VDD_IN"}
    )
    plant(nobody, {file: "5000000"})
    (nobody / file).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    assert power_source(nobody) is None
    reason, _, cure = why_unmetered(nobody).partition("; ")
    assert reason == f"only root may read {nobody / file}"
    assert cure.startswith(f"sudo chmod a+r {nobody / file}")


def test_a_tegrastats_without_power_is_named(
    tegrastats: Callable[[str], Path], tmp_path: Path
) -> None:
    tegrastats(NANO.partition(" POM")[0])
    assert why_unmetered(tmp_path).startswith("tegrastats tells this user no power")


def test_without_a_meter_there_is_no_source(tmp_path: Path) -> None:
    assert power_source(tmp_path) is None
    assert why_unmetered(tmp_path) == ""
    hidden = plant(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0"})
    assert power_source(hidden) is None  # only root may read the counter
