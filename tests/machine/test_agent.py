"""A job goes to a device in parts and comes back whole, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mipkd.core import codec
from mipkd.core.errors import MissingError, StageError, UsageError
from mipkd.core.records import Built, TargetInfo
from pipeline.bench.latency import BenchSettings
from pipeline.bench.stream import StreamSettings
from pipeline.machine.remote import agent, job_file
from targets.base import ByteArray

ROOT = Path(__file__).resolve().parents[2]
QUICK = BenchSettings(
    sizes=((8, 8), (9, 5)), warmup_s=0.01, min_time_s=0.02, min_samples=5, max_drift=9, max_busy=1
)


@pytest.fixture
def images() -> list[tuple[str, ByteArray]]:
    rng = np.random.default_rng(0)
    return [(n, rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)) for n in ("sea", "a b/c")]


@pytest.fixture
def job(tmp_path: Path, images: list[tuple[str, ByteArray]]) -> Path:
    """A job for the null target, unpacked: two models, the second with two files."""
    builts = []
    for number, role in enumerate(("student", "teacher")):
        file = tmp_path / role / "model.xml"
        file.parent.mkdir()
        file.write_text(role)
        file.with_suffix(".bin").write_bytes(bytes(number))
        builts.append(Built("null", "fp32", role, file, 1, 2, 1, {}, ("note",)))
    job_file.write_job(tmp_path / "job.zip", "null", builts, QUICK, images)
    with zipfile.ZipFile(tmp_path / "job.zip") as packed:
        packed.extractall(tmp_path / "job")
    return tmp_path / "job"


def test_a_job_is_read_as_it_was_written(job: Path, images: list[tuple[str, ByteArray]]) -> None:
    found = job_file.read_job(job)
    assert found.settings == QUICK
    assert found.images == ("sea", "a b/c")
    assert [b.role for b in found.builts] == ["student", "teacher"]
    assert all(b.file.is_file() and b.file.with_suffix(".bin").is_file() for b in found.builts)
    assert found.builts[0].notes == ("note",)
    assert np.array_equal(job_file.read_image(job / "images", 1), images[1][1])


def test_the_same_job_has_the_same_id(
    job: Path, images: list[tuple[str, ByteArray]], tmp_path: Path
) -> None:
    found = job_file.read_job(job)
    again = job_file.write_job(tmp_path / "b.zip", "null", found.builts, QUICK, images)
    assert again.id == found.id
    other = replace(QUICK, seed=1)
    changed = job_file.write_job(tmp_path / "c.zip", "null", found.builts, other, images)
    assert changed.id != found.id


def test_a_changed_job_is_refused(job: Path) -> None:
    (job / "models/1/model.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"models/1/model\.bin is missing or was changed"):
        job_file.read_job(job)


def test_results_hold_every_size_and_output(job: Path) -> None:
    said: list[dict[str, object]] = []
    found, outputs = job_file.read_results(agent.work(job, said.append))
    measurements = found.measurements
    assert found.job == job_file.read_job(job).id
    assert found.info.target == "null"
    assert [[one.size for one in m.latencies] for m in measurements] == [[(8, 8), (9, 5)]] * 2
    assert all(len(one.samples_s) >= 5 for m in measurements for one in m.latencies)
    assert said[-1]["done"] == said[-1]["of"]
    assert {model for model, _ in outputs} <= {0}  # a teacher's pixels are not asked for


def test_a_stream_is_a_part_of_its_own_for_each_model(
    job: Path, images: list[tuple[str, ByteArray]], tmp_path: Path
) -> None:
    builts = job_file.read_job(job).builts
    settings = replace(QUICK, sizes=((8, 8),), stream=StreamSettings(fps=100, seconds=0.1))
    job_file.write_job(tmp_path / "streamed.zip", "null", builts, settings, images)
    with zipfile.ZipFile(tmp_path / "streamed.zip") as packed:
        packed.extractall(tmp_path / "streamed")
    said: list[dict[str, object]] = []
    first, _ = job_file.read_results(agent.work(tmp_path / "streamed", said.append))
    student, teacher = first.measurements
    assert teacher.stream is None
    assert student.stream is not None
    assert (student.stream.fps, student.stream.given) == (100, 10)
    assert [len(m.latencies) for m in first.measurements] == [1, 1]
    assert said[-1]["done"] == said[-1]["of"] == 1 + 2  # null gives no pixels
    again, _ = job_file.read_results(agent.work(tmp_path / "streamed", said.append))
    assert again.measurements == first.measurements


def test_work_goes_on_after_the_parts_that_are_done(job: Path) -> None:
    first, _ = job_file.read_results(agent.work(job, lambda _: None))
    (job / "done" / "latency-9x5.json").unlink()
    second, _ = job_file.read_results(agent.work(job, lambda _: None))
    kept, anew = (
        [m.latencies[number].samples_s for m in first.measurements]
        == [m.latencies[number].samples_s for m in second.measurements]
        for number in (0, 1)
    )
    assert kept
    assert not anew


def test_a_changed_result_is_refused(job: Path, tmp_path: Path) -> None:
    file = agent.work(job, lambda _: None)
    with zipfile.ZipFile(file) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    stated = json.loads(parts[job_file.RESULTS])
    stated["measurements"][0]["latencies"][0]["samples_s"] = [1e-6] * 20
    parts[job_file.RESULTS] = json.dumps(stated).encode()
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(changed, "w") as packed:
        for name, data in parts.items():
            packed.writestr(name, data)
    with pytest.raises(UsageError, match=r"results\.json in it was changed"):
        job_file.read_results(changed)
    changed.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UsageError, match="no results"):
        job_file.read_results(changed)


def test_a_target_that_cannot_run_there_is_told(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.null.Null.why_not", lambda self: "no null here")
    with pytest.raises(MissingError, match="target null: no null here"):
        agent.work(job, lambda _: None)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.machine.remote.agent", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def test_the_program_says_what_it_can_and_what_it_did(job: Path) -> None:
    with start("probe", "cpu", "null", "nonsense") as process:
        assert process.stdout
        found = json.loads(process.stdout.read())
    assert list(found["targets"]) == ["cpu", "null", "nonsense"]
    assert "unknown name 'nonsense'" in found["targets"]["nonsense"]["why_not"]
    assert codec.decode(TargetInfo, found["targets"]["cpu"]).precisions[0] == "fp32"
    with start("work", str(job)) as process:
        assert process.stdout
        lines = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    assert Path(lines[-1]["results"]).is_file()
    assert lines[-1]["sha256"] == job_file.hash_of(Path(lines[-1]["results"]).read_bytes())


def test_it_ends_when_the_sender_has_gone(job: Path) -> None:
    settings = json.loads((job / "job.json").read_text())
    settings["settings"]["sizes"] = [[64, side] for side in range(1, 2000)]
    (job / "job.json").write_text(json.dumps(settings))
    with start("work", str(job)) as process:
        time.sleep(2)
        assert process.poll() is None
        assert process.stdin
        process.stdin.close()
        assert process.wait(5) == -9


def test_a_second_one_keeps_out(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PATIENCE_S", -5.0)
    with (
        agent.lock_job(job),
        pytest.raises(StageError, match="another process is doing this job"),
        agent.lock_job(job),
    ):
        pass
