"""What boards tell and do while measured, from trees of files made after published ones."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mipkd.core import records
from mipkd.core.evidence import Outcome
from mipkd.core.measurement import Measurement
from mipkd.core.records import Built
from pipeline.bench.board import Watch, read_board
from pipeline.bench.host import OtherPrograms
from pipeline.bench.latency import BenchSettings
from pipeline.judge.bounds import GateConfig
from pipeline.judge.gates import judge
from pipeline.machine.local import Local
from pipeline.stage import NotInKey, ready
from pipeline.stages.measure import MeasureInputs, measure

ORIN = {  # Jetson Orin Nano, JetPack 6
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson Orin Nano Developer Kit Super\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, "
    "EABI: aarch64, DATE: Thu Sep 18 22:54:44 UTC 2025\n# KERNEL_VARIANT: oot\n",
    "var/lib/dpkg/status": """Package: nvidia-jetpack-dev
Status: install ok installed
Version: 9.9

Package: nvidia-jetpack
Status: install ok installed
Source: nvidia-jetpack (6.2.1)
Version: 6.2.1+b38
Description: NVIDIA Jetpack Meta Package
 Version: 1

Package: nvidia-l4t-core
Status: deinstall ok config-files
Version: 36.4.6-20250101000000
""",
    "var/lib/nvpmodel/status": "pmode:0002",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "sys/devices/system/cpu/online": "0-5\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpu4/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu4/cpufreq/scaling_cur_freq": "1728000\n",
    "sys/devices/system/cpu/cpu4/cpufreq/scaling_max_freq": "1728000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51687\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "48500\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/thermal/cooling_device2/type": "devfreq-17000000.gpu\n",
    "sys/class/thermal/cooling_device2/cur_state": "0\n",
    "sys/class/thermal/cooling_device3/type": "hot-surface-alert\n",
    "sys/class/thermal/cooling_device3/cur_state": "1\n",
    "sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc1_throt_en": "1\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "27390\n",
    "sys/class/hwmon/hwmon3/oc3_throt_en": "1\n",
}
PC = {
    "sys/class/dmi/id/sys_vendor": "LENOVO\n",
    "sys/class/dmi/id/product_name": "21HM\n",
    "sys/devices/system/cpu/online": "0-1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "800000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "4600000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "40\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "2\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "40\n",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone0/temp": "61000\n",
    "sys/class/thermal/cooling_device0/type": "Processor\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "intel_powerclamp\n",
    "sys/class/thermal/cooling_device1/cur_state": "-1\n",
    "sys/class/thermal/cooling_device2/type": "TCC Offset\n",
    "sys/class/thermal/cooling_device2/cur_state": "5\n",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    """Each file whole at once, as a kernel's are: a look between two writes would read it empty."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        written = root / f"{name}.new"
        written.write_text(text)
        written.replace(root / name)
    return root


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the board's own programs, first on PATH; empty at first."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


def test_facts_of_an_orin(tmp_path: Path) -> None:
    assert read_board(plant(tmp_path, ORIN)) == {
        "board": "NVIDIA Jetson Orin Nano Developer Kit Super",
        "L4T": "36.4.7",
        "JetPack": "6.2.1+b38",
        "power mode": "MAXN_SUPER (2)",
        "cores online": "0-5",
        "CPU governor": "schedutil",
        "CPU clock": "730 to 1728 MHz",
        "CPU clock limit": "1728 MHz",
        "GPU governor": "nvhost_podgov",
        "GPU clock": "306 MHz",
        "GPU clock limit": "1020 MHz",
        "temperatures": "cpu-thermal 51.7 °C, gpu-thermal 48.5 °C",
    }


def test_facts_of_a_pc_and_of_nothing(tmp_path: Path) -> None:
    assert read_board(plant(tmp_path / "pc", PC)) == {
        "board": "LENOVO 21HM",
        "cores online": "0-1",
        "CPU governor": "powersave",
        "CPU clock": "800 MHz",
        "CPU clock limit": "4600 MHz",
        "temperatures": "x86_pkg_temp 61.0 °C",
    }
    assert read_board(tmp_path / "nothing") == {}


def test_a_container_tells_its_limits_and_how_often_they_stopped_it(tmp_path: Path) -> None:
    stat = "sys/fs/cgroup/cpu.stat"
    limited = {
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "4294967296\n",
        "proc/loadavg": "0.52 0.58 0.59 1/189 12345\n",
        stat: "usage_usec 9\nnr_periods 40\nnr_throttled 7\n",
    }
    assert read_board(plant(tmp_path, limited)) == {
        "container": "limited to 1.5 CPUs and 4.0 GiB",
        "load": "0.52 0.58 0.59",
    }
    with Watch(tmp_path) as watch:
        plant(tmp_path, {stat: "nr_throttled 19\n"})
    assert watch.conditions == {"CPU quota": "stopped it 12 times while measured"}
    assert watch.throttled == ""
    plant(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"})
    assert read_board(tmp_path) == {"load": "0.52 0.58 0.59"}


def test_power_mode_is_asked_of_nvpmodel_and_read_where_that_fails(
    tmp_path: Path, programs: Path
) -> None:
    plant(tmp_path, ORIN)
    program(programs, "nvpmodel", "echo 'NV Fan Mode:quiet'; echo 'NV Power Mode: 15W'; echo 0")
    assert read_board(tmp_path)["power mode"] == "15W (0)"
    program(programs, "nvpmodel", "echo 'NVPM ERROR: no access' >&2; exit 1")
    assert read_board(tmp_path)["power mode"] == "MAXN_SUPER (2)"


def test_l4t_is_told_by_its_package_where_the_release_file_is_missing(tmp_path: Path) -> None:
    status = ORIN["var/lib/dpkg/status"].replace("deinstall ok config-files", "hold ok installed")
    plant(tmp_path, {"var/lib/dpkg/status": status})
    assert read_board(tmp_path)["L4T"] == "36.4.6-20250101000000"


@pytest.mark.parametrize("tree", [ORIN, PC])
def test_a_quiet_board_is_not_called_throttled(tree: dict[str, str], tmp_path: Path) -> None:
    with Watch(plant(tmp_path, tree), every_s=0.01) as watch:
        time.sleep(0.05)
    assert watch.throttled == ""


def wait_for(seen: Callable[[], bool]) -> None:
    """Another thread looks; on a busy machine that takes as long as it takes."""
    until = time.monotonic() + 20
    while not seen() and time.monotonic() < until:
        time.sleep(0.01)


def test_conditions_hold_the_extremes(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu/cpu4/cpufreq/scaling_cur_freq"
    with Watch(plant(tmp_path, ORIN), every_s=0.01) as watch:
        wait_for(lambda: "1728" in watch.conditions.get("CPU clock while measured", ""))
        plant(tmp_path, {"sys/class/thermal/thermal_zone1/temp": "71250"})
        wait_for(lambda: "71.2" in watch.conditions["highest temperature"])
        plant(tmp_path, {"sys/class/thermal/thermal_zone1/temp": "60000", cpu: "1344000"})
        wait_for(lambda: "1344" in watch.conditions["CPU clock while measured"])
    assert watch.conditions == {
        "highest temperature": "gpu-thermal 71.2 °C",
        "CPU clock while measured": "1344 to 1728 MHz",
        "GPU clock while measured": "306 MHz",
    }


@pytest.mark.parametrize(
    ("tree", "file", "text", "says"),
    [
        (
            ORIN,
            "sys/class/thermal/cooling_device1/cur_state",
            "2",
            "CPU throttled: cooling device 'cpu-throttle-alert' rose to state 2",
        ),
        (
            ORIN,
            "sys/class/thermal/cooling_device2/cur_state",
            "4",
            "GPU throttled: cooling device 'devfreq-17000000.gpu' rose to state 4",
        ),
        (
            ORIN,
            "sys/class/hwmon/hwmon3/oc3_event_cnt",
            "27398",
            "throttled: oc3_event_cnt (over-current or under-voltage of the supply) rose by 8",
        ),
        (
            PC,
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count",
            "5",
            "throttled: core_throttle_count of x86 rose by 3",
        ),
        (
            PC,
            "sys/class/thermal/cooling_device1/cur_state",
            "25",
            "CPU throttled: cooling device 'intel_powerclamp' rose to state 25",
        ),
    ],
)
def test_throttling_is_named_with_its_figure(
    tree: dict[str, str], file: str, text: str, says: str, tmp_path: Path
) -> None:
    with Watch(plant(tmp_path, tree)) as watch:
        plant(tmp_path, {file: text})
    assert watch.throttled == says


def test_throttling_that_came_and_went_or_was_there_before_counts(tmp_path: Path) -> None:
    state = "sys/class/thermal/cooling_device1/cur_state"
    with Watch(plant(tmp_path, ORIN), every_s=0.01) as watch:
        plant(tmp_path, {state: "1"})
        wait_for(lambda: any(highest > 0 for _, highest in list(watch._states.values())))
        plant(tmp_path, {state: "0"})
    assert "rose to state 1" in watch.throttled
    plant(tmp_path, {state: "1"})
    with Watch(tmp_path) as watch:
        plant(tmp_path, {state: "0"})
    assert watch.throttled.endswith("'cpu-throttle-alert' was at state 1 from the start")


def test_events_of_a_supply_whose_throttling_is_off_do_not_count(tmp_path: Path) -> None:
    plant(tmp_path, {**ORIN, "sys/class/hwmon/hwmon3/oc3_throt_en": "0"})
    with Watch(tmp_path) as watch:
        plant(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": "99999"})
    assert watch.throttled == ""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("0x0", "0x0", ""),
        ("0x50000", "0x50000", ""),  # since it started, but not while measured
        ("0x0", "0x40000", "from 0x0 to 0x40000 (throttled)"),
        ("0x20002", "0x20002", "(frequency capped)"),
    ],
)
def test_a_raspberry_pi_is_asked(
    before: str, after: str, says: str, tmp_path: Path, programs: Path
) -> None:
    program(programs, "vcgencmd", f"echo throttled={before}")
    with Watch(tmp_path) as watch:
        program(programs, "vcgencmd", f"echo throttled={after}")
    assert watch.throttled.endswith(says)
    assert bool(watch.throttled) == bool(says)


def test_watch_ends_with_what_it_watches(tmp_path: Path) -> None:
    watch = Watch(plant(tmp_path, ORIN))
    with pytest.raises(RuntimeError), watch:
        raise RuntimeError
    assert not watch._thread.is_alive()


def measured(folder: Path, max_busy: float = 1.0) -> Measurement:
    """By the stage itself, of the target that answers at once."""
    settings = BenchSettings(
        sizes=((8, 8),),
        warmup_s=0.0,
        min_time_s=0.01,
        max_drift=50.0,
        max_time_s=1.0,
        max_busy=max_busy,
    )
    built = Built("null", "fp32", "student", folder / "model.onnx", 1, scale=2, multiple=1)
    tests = records.TestSet(folder, "", "none", 2, (), "published")
    machine = Local()
    info = machine.offers(["null"])["null"]
    inputs = MeasureInputs(settings, info, (ready(built),), ready(tests), NotInKey(machine))
    (one,) = measure.function(inputs, out=folder)
    return one


def test_a_measurement_while_throttled_is_invalid(tmp_path: Path, programs: Path) -> None:
    program(programs, "nvpmodel", "echo 'NV Power Mode: 15W'; echo 0")
    program(programs, "vcgencmd", "echo throttled=0x0")
    quiet = measured(tmp_path)
    assert quiet.invalid_because == ""
    assert quiet.conditions["power mode"] == "15W (0)"
    program(programs, "vcgencmd", "echo throttled=0x4")
    slow = measured(tmp_path)
    assert "throttled" in slow.invalid_because
    gates = judge(GateConfig(), (slow,), ()).gates
    assert (Outcome.INVALID, slow.invalid_because) in [(g.outcome, g.reason) for g in gates]


def test_a_measurement_on_a_busy_machine_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OtherPrograms, "share", lambda self: 0.8)
    one = measured(tmp_path, max_busy=0.7)
    assert one.invalid_because == (
        "busy machine: other programs took 80% of the CPU (bound 70%, bench.max_busy)"
    )
    assert judge(GateConfig(), (one,), ()).outcome is Outcome.INVALID
    assert measured(tmp_path, max_busy=0.9).invalid_because == ""


def test_energy_is_measured_where_there_is_a_meter(tmp_path: Path, programs: Path) -> None:
    line = "RAM 2840/7620MB VDD_IN 4940mW/4940mW VDD_SOC 1080mW/1080mW"
    program(programs, "tegrastats", f"while :; do echo '{line}'; sleep 0.02; done")
    (latency,) = measured(tmp_path).latencies
    assert latency.power_from == "tegrastats VDD_IN"
    assert latency.joules_per_frame is not None
    assert 0 < latency.joules_per_frame < 4.94 * 0.01
