"""The bench on sessions of our own: what it keeps, and what it refuses to believe."""

import mmap
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from mipkd.core import memory
from mipkd.core.images import read_rgb
from mipkd.core.records import Built
from pipeline.bench import host
from pipeline.bench.host import OtherPrograms, describe_host
from pipeline.bench.latency import BenchSettings, compare, find_doubt, find_drift
from pipeline.bench.models import time_models
from pipeline.bench.pixels import output_file, score
from pipeline.bench.stats import Estimate, percentiles, ratio_of_medians
from targets.base import FloatArray, Session, find

ORIN = "NVIDIA Jetson AGX Orin"
MODEL, MACHINE = "sys/firmware/devicetree/base/model", "sys/devices/soc0/machine"
USUAL = BenchSettings()
QUICK = BenchSettings(  # a busy machine moves the pace of so short a measurement; not our subject
    sizes=((8, 12),),
    warmup_s=0.0,
    min_time_s=0.02,
    min_samples=5,
    max_time_s=0.5,
    turn_s=0.005,
    max_drift=20.0,
    max_busy=1.0,
)


class Clock:
    """Time that only sessions pass, and a microsecond at each look: no machine is too busy."""

    now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def wait(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bench.latency.perf_counter_ns", CLOCK)


@dataclass
class Repeat(Session):
    """A session that repeats pixels, after a pause."""

    pause_s: float = 0.0
    scale: int = 2
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        self.seen.append(lr_NCHW.shape)
        CLOCK.wait(self.pause_s)
        return lr_NCHW.repeat(self.scale, axis=2).repeat(self.scale, axis=3)


class Broken(Repeat):
    """A session that answers wrongly."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.asarray(self.answer, dtype=np.float32)


def test_every_sample_is_kept_and_cold_start_apart() -> None:
    found = compare({"slow": Repeat(0.004), "quick": Repeat(0.001)}, (8, 12), QUICK)
    assert set(found) == {"slow", "quick"}
    for name, least_s in (("slow", 0.004), ("quick", 0.001)):
        latency = found[name]
        assert latency.size == (8, 12)
        assert len(latency.samples_s) >= QUICK.min_samples
        assert sum(latency.samples_s) >= QUICK.min_time_s
        assert min(latency.samples_s) >= least_s
        assert latency.cold_start_s >= least_s
        assert latency.warmup >= QUICK.min_warmups


def test_models_take_turns() -> None:
    order: list[str] = []

    class Noting(Repeat):
        def __init__(self, name: str) -> None:
            super().__init__(0.002)
            self.name = name

        def run(self, lr_NCHW: FloatArray) -> FloatArray:
            order.append(self.name)
            return super().run(lr_NCHW)

    compare({name: Noting(name) for name in "ab"}, (8, 12), QUICK)
    half = len(order) // 2
    assert {"a", "b"} == set(order[:half]) == set(order[half:])


def test_the_first_call_of_a_turn_is_not_counted() -> None:
    """What ran before leaves its data in the caches: here the first call takes 40 ms, not 1."""
    latest: list[str] = []

    class Cold(Repeat):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def run(self, lr_NCHW: FloatArray) -> FloatArray:
            self.pause_s = 0.001 if latest[-1:] == [self.name] else 0.04
            latest.append(self.name)
            return super().run(lr_NCHW)

    settings = replace(QUICK, min_time_s=0.1)
    found = compare({name: Cold(name) for name in "ab"}, (8, 12), settings)
    changes = sum(one != before for before, one in pairwise(latest))
    slow = sum(s >= 0.04 for latency in found.values() for s in latency.samples_s)
    assert changes >= 10
    assert slow < changes / 4  # a busy machine may make one slow, not each


def test_input_is_smooth_and_the_same_each_time() -> None:
    given: list[FloatArray] = []

    class Keeping(Repeat):
        def run(self, lr_NCHW: FloatArray) -> FloatArray:
            given.append(lr_NCHW)
            return super().run(lr_NCHW)

    firsts = []
    for _ in range(2):
        given.clear()
        compare({"one": Keeping()}, (32, 48), QUICK)
        firsts.append(given[0])
    first, last = firsts
    assert first.shape == (1, 3, 32, 48)
    assert first.dtype == np.float32
    assert first.flags["C_CONTIGUOUS"]
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.std() > 0.1
    assert np.abs(np.diff(first, axis=3)).max() < 0.25
    assert np.array_equal(first, last)


def test_input_is_padded_where_a_model_needs_it() -> None:
    session = Repeat(0.001)
    found = compare({"window": session}, (9, 13), QUICK, multiples={"window": 8})
    assert set(session.seen) == {(1, 3, 16, 16)}
    assert found["window"].size == (9, 13)
    assert found["window"].invalid_because == ""


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (RuntimeError("no kernel"), "inference failed: RuntimeError: no kernel"),
        (np.zeros((1, 3, 7, 7)), r"output of shape \(1, 3, 7, 7\)"),
        (np.zeros((3, 16, 24)), "output of shape"),
        (np.full((1, 3, 16, 24), np.nan), "not finite"),
    ],
)
def test_wrong_answers_are_invalid_and_spare_the_others(answer: object, says: str) -> None:
    found = compare({"wrong": Broken(answer), "right": Repeat(0.001)}, (8, 12), QUICK)

    assert re.search(says, found["wrong"].invalid_because)
    assert found["wrong"].samples_s == ()
    assert found["right"].samples_s
    assert found["right"].invalid_because == ""


def test_too_few_samples_are_invalid() -> None:
    settings = BenchSettings(
        sizes=((8, 8),), warmup_s=0, min_warmups=1, min_time_s=0.05, max_time_s=0.05, min_samples=5
    )
    latency = compare({"heavy": Repeat(0.03)}, (8, 8), settings)["heavy"]
    assert 0 < len(latency.samples_s) < 5
    assert "fewer than 5" in latency.invalid_because
    assert "bench.max_time_s" in latency.invalid_because


def test_a_pace_that_moves_is_invalid_and_noise_is_not() -> None:
    random = np.random.default_rng(0)
    steady = tuple(0.010 * (1 + random.gamma(1.0, 0.1, 60)))
    stalls = tuple(np.where(random.random(60) < 0.1, 0.08, steady))
    throttled = (*steady[:40], *(sample * 1.5 for sample in steady[40:]))
    assert find_doubt(steady, USUAL) == ""
    assert find_doubt(stalls, USUAL) == ""
    assert "unstable: median" in find_doubt(throttled, USUAL)
    assert "bound 30%" in find_drift(throttled, USUAL)


def test_calls_that_do_not_block_are_invalid() -> None:
    assert "do not block" in find_doubt((0.010,) * 50 + (0.0001,) * 10, USUAL)


def test_a_drifting_measurement_is_made_again() -> None:
    class Settling(Repeat):
        """Slow for its first calls, as a machine that has yet to wake up."""

        def run(self, lr_NCHW: FloatArray) -> FloatArray:
            self.pause_s = 0.03 if len(self.seen) < 8 else 0.002
            return super().run(lr_NCHW)

    settings = BenchSettings(
        sizes=((8, 8),), warmup_s=0, min_time_s=0.01, min_samples=12, turn_s=0.001, max_drift=3.0
    )
    latency = compare({"settling": Settling()}, (8, 8), settings)["settling"]
    assert latency.invalid_because == ""
    assert statistics.median(latency.samples_s[:4]) < 0.03


def test_settings_are_checked_and_forbid_unknown_names() -> None:
    read = TypeAdapter(BenchSettings).validate_python
    assert read({"sizes": [[64, 64]]}).sizes == ((64, 64),)
    for wrong in ({"size": 3}, {"sizes": []}, {"min_samples": 1}, {"max_time_s": 0.1}):
        with pytest.raises(ValidationError):
            read(wrong)


def test_default_sizes_are_height_by_width() -> None:
    assert BenchSettings().sizes == ((64, 64), (128, 128), (180, 320))


def test_percentiles_are_those_of_the_samples() -> None:
    samples = tuple(i / 100 for i in range(101))
    found = percentiles(samples)
    assert tuple(p.value for p in (found.p50_s, found.p90_s, found.p99_s)) == pytest.approx(
        (0.5, 0.9, 0.99)
    )
    for low, high in ((p.low, p.high) for p in (found.p50_s, found.p90_s, found.p99_s)):
        assert low < high


def test_interval_holds_the_true_ratio_though_the_machine_drifts() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(40):
        pace = 1 + 0.2 * np.sin(np.linspace(0, 3, 200))  # common to both
        slow = 3.0 * pace * (1 + random.gamma(1.0, 0.05, 200))
        fast = 1.0 * np.repeat(pace, 3) * (1 + random.gamma(1.0, 0.05, 600))
        ratio = ratio_of_medians(tuple(slow), tuple(fast))
        held += ratio.low <= 3.0 <= ratio.high
        assert ratio.low <= ratio.value <= ratio.high < ratio.low * 1.1
    assert held >= 34  # of 40; 95 % would be 38


def test_host_is_described_the_same_each_time() -> None:
    found = describe_host()
    assert found == describe_host()
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_bytes > 2**27
    assert len(found.id) == 12


@pytest.mark.parametrize(
    ("cpuinfo", "file", "name"),
    [
        ("model name\t: ARMv8 Processor rev 1 (v8l)", MODEL, ORIN),
        ("model name\t: ARMv8 Processor rev 1 (v8l)", MACHINE, ORIN),
        ("model name\t: ARMv8 Processor rev 1 (v8l)", "etc/none", "ARMv8 Processor rev 1 (v8l)"),
        ("model name\t: ARMv7 Processor rev 4 (v7l)", MODEL, ORIN),
        ("CPU part\t: 0xd0b", MODEL, ORIN),
        ("model name\t: Intel(R) Xeon(R)", MODEL, "Intel(R) Xeon(R)"),
    ],
)
@pytest.mark.skipif(platform.system() == "Darwin", reason="asks sysctl there")
def test_a_board_is_called_by_its_name_where_the_cpus_says_nothing(
    cpuinfo: str, file: str, name: str, tmp_path: Path
) -> None:
    for path, text in (("proc/cpuinfo", f"processor\t: 0\n{cpuinfo}\n"), (file, f"{ORIN}\0")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert describe_host(tmp_path).cpu == name


def test_scores_are_of_the_pixels_that_are_written(tmp_path: Path) -> None:
    hr = np.random.default_rng(0).integers(0, 256, (24, 26, 3), dtype=np.uint8)
    lr = hr[::2, ::2]
    exact, repeated = (
        score(session, tests=[("one.two", lr, hr)], scale=2, multiple=4, out=tmp_path / name)
        for name, session in (("exact", _Exact(hr)), ("repeated", Repeat()))
    )
    assert exact[0].psnr_y_db == 100
    assert exact[0].metrics["ssim_y"] == pytest.approx(1)
    assert repeated[0].psnr_y_db < 15
    assert repeated[0].image == "one.two"
    assert np.array_equal(read_rgb(output_file(tmp_path / "exact", "one.two")), hr)


class _Exact(Repeat):
    """A session that knows the truth, and must be given a padded image."""

    def __init__(self, hr_HWC: np.ndarray) -> None:
        super().__init__()
        self.hr_HWC = hr_HWC

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        height, width = lr_NCHW.shape[2:]
        assert height % 4 == width % 4 == 0
        sr_HWC = np.zeros((height * 2, width * 2, 3), dtype=np.float32)
        sr_HWC[: self.hr_HWC.shape[0], : self.hr_HWC.shape[1]] = self.hr_HWC / np.float32(255)
        return sr_HWC.transpose(2, 0, 1)[None]


def test_bench_imports_on_a_bare_device() -> None:
    code = (
        "import sys, pipeline.bench.latency, pipeline.bench.stats, pipeline.bench.host, "
        "pipeline.bench.pixels, pipeline.bench.comparisons\n"
        "heavy = {'torch', 'pydantic', 'PIL', 'skimage', 'typer', 'onnx'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux tells of other programs")
def test_what_other_programs_take_is_known() -> None:
    spin = "import time\nprint(flush=True)\nwhile time.process_time() < 1: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        others = OtherPrograms()
        time.sleep(0.5)
        share = others.share()
        other.kill()
    cores = os.cpu_count() or 1
    assert 0.3 / cores < share <= 1.0


def test_our_own_work_is_no_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_cpu_times", lambda: (0.0, 0.0, 0.0))
    alone, beside = OtherPrograms(), OtherPrograms()
    monkeypatch.setattr(host, "_cpu_times", lambda: (9.0, 20.0, 9.0))
    assert alone.share() == 0.0
    monkeypatch.setattr(host, "_cpu_times", lambda: (19.0, 20.0, 9.0))
    assert beside.share() == 0.5


@pytest.mark.parametrize(("busy", "share"), [(5.0, 0.0), (7.0, 0.5), (8.0, 1.0)])
def test_others_beside_a_container_take_nothing_of_ours_until_no_core_is_left(
    busy: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(host, "_cores", lambda: 2)
    monkeypatch.setattr(host, "_cpu_times", lambda: (0.0, 0.0, 0.0))
    others = OtherPrograms()
    monkeypatch.setattr(host, "_cpu_times", lambda: (busy, 8.0, 0.0))
    assert others.share() == share


def test_the_range_of_a_percentile_holds_it_19_times_of_20() -> None:
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(400):
        found = percentiles(rng.exponential(1.0, 120))
        for index, (share, one) in enumerate(((0.5, found.p50_s), (0.9, found.p90_s))):
            held[index] += one.low <= -np.log(1 - share) <= one.high
    assert (held >= 0.93 * 400).all()
    one = percentiles([2.0])
    assert one.p50_s == one.p99_s == Estimate(2.0, 2.0, 2.0)


def test_from_bytes_to_bytes_takes_longer_than_the_bare_call() -> None:
    latency = compare({"one": Repeat(0.002)}, (32, 48), QUICK)["one"]
    assert latency.end_to_end_s is not None
    assert latency.end_to_end_s >= 0.002
    assert len(latency.at_s) == len(latency.samples_s)
    assert list(latency.at_s) == sorted(latency.at_s)
    assert latency.at_s[0] == 0.0


def taken(size: int) -> mmap.mmap:
    """Pages of their own: what numpy is given may be some that this process had before."""
    found = mmap.mmap(-1, size)
    found.write(b"1" * size)
    return found


class Hungry(Session):
    """Takes memory when it is opened, and more at its first inference."""

    def __init__(self) -> None:
        self.held = [taken(30_000_000)]

    def run(self, lr_NCHW: FloatArray) -> FloatArray:
        if len(self.held) == 1:
            self.held.append(taken(50_000_000))
        return np.repeat(np.repeat(lr_NCHW, 2, axis=2), 2, axis=3)

    def close(self) -> None:
        self.held.clear()


@pytest.mark.skipif(memory.resident_bytes() is None, reason="this system does not tell")
def test_load_and_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = find("null")
    monkeypatch.setattr(type(target), "open", lambda self, built: Hungry())
    built = Built("null", "fp32", "student", tmp_path / "model.onnx", 1, scale=2, multiple=1)
    (found,) = time_models(target, [built], replace(QUICK, sizes=((8, 8), (16, 16))))
    for latency in found.latencies:
        assert latency.load_s is not None
        assert latency.load_s > 0
        assert latency.memory_bytes is not None
        assert 75e6 < latency.memory_bytes < 250e6  # and what was written there, in passing
