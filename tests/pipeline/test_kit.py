"""A kit measures on a device that nobody reaches, and its results come home to their run."""

from __future__ import annotations

import ast
import json
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mipkd.core.evidence import Evidence
from pipeline.bundle import manifest
from pipeline.bundle.kit import make_kit
from pipeline.machine.remote import job_file
from pipeline.run import Run

SIMULATED = "coreml"  # in the run of conftest.py
Finished = Any  # the record of conftest.py
Command = Callable[..., Any]
EXIT = {"PASS": 0, "FAIL": 6, "INVALID": 7}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has numpy and onnxruntime, and nothing else of ours."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    for package in ("numpy", "onnxruntime"):
        spec = find_spec(package)
        assert spec
        assert spec.origin
        installed = Path(spec.origin).parents[1]
        for part in installed.glob(f"{package}[-.]*"):
            (site / part.name).symlink_to(part)
        (site / package).symlink_to(installed / package)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def kit(once: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("kit") / "kit-cpu.pyz"
    made = make_kit(once.bundle, "cpu", file)
    assert made.models == ("student fp32", "student int8", "teacher fp32")
    assert (made.images, made.whole) == (8, True)  # five probes
    return file


def carried(kit: Path, to: Path) -> Path:
    """Alone in a folder of its own, as on a device."""
    to.mkdir(exist_ok=True)
    return Path(shutil.copy(kit, to))


def started(python: Path, kit: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", kit.name, *words]
    return subprocess.run(command, cwd=kit.parent, capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(kit: Path, bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the kit measured, in a Python that lacks all but numpy and the runtime."""
    there = carried(kit, tmp_path_factory.mktemp("device"))
    missing = "import torch"
    assert subprocess.run([bare, "-I", "-c", missing], capture_output=True).returncode
    ran = started(bare, there)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("mipkd-pipeline kit of run: measures on target cpu\n")
    assert "[10/10]" in ran.stdout
    assert ran.stdout.endswith("bring it back: mipkd-pipeline collect results.zip RUN\n")
    assert sorted(f.name for f in there.parent.iterdir()) == ["kit-cpu.pyz", "results.zip"]
    return there.with_name("results.zip")


def measured(run: Path) -> dict[tuple[str, str], dict[str, object]]:
    found = json.loads((run / "report/latest/results.json").read_text())["measurements"]
    return {(m["role"], m["precision"]): m for m in found if m["target"] == "cpu"}


def test_collected_figures_are_those_of_a_local_run(
    finished: Finished, results: Path, ended: Command
) -> None:
    before = measured(finished.root)
    said = ended("collect", results, finished.root)
    verdict = json.loads((finished.root / "report/latest/results.json").read_text())["verdict"]
    assert said.code == EXIT[verdict["outcome"]], said.err
    assert f"verdict: {verdict['outcome']}" in said.out
    assert "cpu: measured by a kit on " in said.out
    after = measured(finished.root)
    assert before.keys() == after.keys()
    for key, m in after.items():
        assert m["device"] == "kit"
        assert m["host"]
        assert m["scores"] == before[key]["scores"]
        sizes = [one["size"] for one in m["latencies"]]  # type: ignore[attr-defined]
        assert sizes == [[24, 32], [32, 32]]
        assert all(len(one["samples_s"]) >= 20 for one in m["latencies"])  # type: ignore[attr-defined]
    assert before["student", "int8"]["latencies"] != after["student", "int8"]["latencies"]
    page = (finished.root / "report/latest/report.md").read_text()
    assert "Measured elsewhere: cpu on " in page
    assert ended("verify", finished.bundle).code == 0
    bench = json.loads((finished.bundle / "bench/cpu-int8.json").read_text())
    kept = Run(finished.root).load_record("evidence.json", Evidence)
    host = next(m.host for m in kept.measurements if m.device == "kit")
    assert host
    assert bench["host"]["id"] == host.id


def test_a_kits_results_say_what_its_machine_offers(results: Path, ended: Command) -> None:
    said = ended("doctor", "--device", f"kit://{results}", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["targets"]["cpu"]["usable"]
    assert found["targets"]["null"]["why_not"] == "this kit measured cpu"
    assert found["host"]["cores"] > 0


def test_a_later_run_keeps_them_while_the_models_last_and_takes_none_of_other_models(
    finished: Finished, results: Path, ended: Command
) -> None:
    ended("collect", results, finished.root)
    collected = measured(finished.root)["student", "int8"]["latencies"]
    ended(*finished.words, "--out", finished.root)
    assert measured(finished.root)["student", "int8"]["latencies"] == collected
    anew = ("--target", "cpu", "--set", "calibrate.seed=1")
    said = ended(*finished.words, "--out", finished.root, *anew)
    assert "cpu: 1 of 3 figures that a kit brought are of other" in " ".join(said.err.split())
    other = measured(finished.root)
    assert other["student", "int8"]["device"] == ""  # calibrated anew: another file
    assert other["student", "fp32"]["device"] == "kit"
    said = ended("collect", results, finished.root)
    assert said.code == 2
    assert "of another run's kit: cpu student int8 differs from this run's: model.onnx" in said.err
    ended(*finished.words, "--out", finished.root, *anew, "--precision", "fp32")
    said = ended("collect", results, finished.root)
    assert said.code == 2
    assert "of another run's kit: this run has no cpu student int8" in said.err


def test_missing_figures_are_filled_in(finished: Finished, results: Path, ended: Command) -> None:
    """As of a target that failed here: no measurement, and a row for the failure."""
    run = Run(finished.root)
    stored = json.loads((finished.root / "evidence.json").read_text())
    stored["measurements"] = [m for m in stored["measurements"] if m["target"] != "cpu"]
    stored["failures"] = [
        *(
            {
                "target": "cpu",
                "precision": "all",
                "stage": "measure",
                "what": "no",
                "hint": "",
                "role": "student",
            },
        )
    ]
    (finished.root / "evidence.json").write_text(json.dumps(stored))
    ended("collect", results, finished.root)
    kept = run.load_record("evidence.json", Evidence)
    assert not kept.failures
    assert len([m for m in kept.measurements if m.target == "cpu"]) == 3


def test_changed_results_are_refused(
    finished: Finished, results: Path, tmp_path: Path, ended: Command
) -> None:
    with zipfile.ZipFile(results) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    image = next(name for name in parts if name.endswith(".npy"))
    for name in ("results.json", "job.json", image):
        changed = tmp_path / "changed.zip"
        data = bytearray(parts[name].replace(b"0.0", b"0.1", 1))
        if name == image:
            data[-3] ^= 1
        with zipfile.ZipFile(changed, "w") as packed:
            for part, content in (parts | {name: bytes(data)}).items():
                packed.writestr(part, content)
        said = ended("collect", changed, finished.root)
        assert said.code == 2
        assert f"{name} in it was changed" in said.err
    changed.write_bytes(b"not a zip")
    assert ended("collect", changed, finished.root).code == 2
    assert ended("collect", tmp_path / "absent.zip", finished.root).code == 2
    assert ended("collect", results, tmp_path).code == 2
    assert not (finished.root / "collected").exists()


def test_results_on_other_images_are_refused(
    finished: Finished, results: Path, ended: Command
) -> None:
    lr = next((finished.root / "tests").glob("*/lr/canyon-wren.png"))
    shutil.copy(lr.with_name("ocean-waves.png"), lr)
    said = ended("collect", results, finished.root)
    assert said.code == 2
    assert "test image canyon-wren differs from this run's" in said.err


def test_an_interrupted_kit_goes_on(kit: Path, bare: Path, tmp_path: Path) -> None:
    there = carried(kit, tmp_path / "device")
    command = [str(bare), "-I", there.name]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def heed() -> None:  # what a shell starts in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=there.parent, preexec_fn=heed, **pipe) as first:
        assert first.stdout
        for line in first.stdout:
            if line.lstrip("[ ").startswith("1/"):
                break
        else:
            raise AssertionError(first.communicate()[1])
        first.send_signal(signal.SIGINT)
        _, err = first.communicate()
    assert first.returncode == 130
    assert "error: interrupted\nhint: the same command goes on where it was\n" in err
    work = next(there.parent.glob("*.partial"))
    done = (work / "done/latency-24x32.json").read_text()
    second = started(bare, there)
    assert second.returncode == 0, second.stderr
    assert "goes on where it was interrupted" in second.stdout
    assert sorted(f.name for f in there.parent.iterdir()) == [there.name, "results.zip"]
    found, _ = job_file.read_results(there.with_name("results.zip"))
    kept = json.loads(done)[0]["latencies"][0]["samples_s"]
    assert list(found.measurements[0].latencies[0].samples_s) == kept


def test_a_kit_says_what_a_device_lacks(once: Finished, kit: Path, tmp_path: Path) -> None:
    there = carried(kit, tmp_path / "device")
    venv.create(tmp_path / "empty", with_pip=False)
    empty = tmp_path / "empty/bin/python"
    ran = started(empty, there)
    assert ran.returncode == 4
    assert ran.stderr.startswith("error: needs numpy, which this Python lacks\nhint: ")
    numpy = find_spec("numpy")
    assert numpy
    assert numpy.origin
    site = next((tmp_path / "empty/lib").glob("python*/site-packages"))
    for part in Path(numpy.origin).parents[1].glob("numpy*"):
        (site / part.name).symlink_to(part)
    ran = started(empty, there)
    assert ran.returncode == 4
    assert "error: target cpu: onnxruntime is not installed; pip install onnxruntime" in ran.stderr
    other = carried(once.root / f"kit-{SIMULATED}.pyz", tmp_path / "device")
    ran = started(Path(sys.executable), other)
    assert ran.returncode == 4
    assert f"target {SIMULATED}: this machine could only simulate it" in ran.stderr
    ran = started(Path(sys.executable), there, "-o", "/proc/none/results.zip")
    assert ran.returncode == 2
    assert "error: cannot write to /proc/none" in ran.stderr
    assert sorted(f.name for f in there.parent.iterdir()) == sorted([there.name, other.name])


def test_parts_of_another_runtime_are_made_anew(kit: Path, bare: Path, tmp_path: Path) -> None:
    there = carried(kit, tmp_path / "device")
    with zipfile.ZipFile(kit) as packed:
        id = job_file.hash_of(packed.read("job/job.json"))
    work = there.with_name(f"kit-cpu-{id[:8]}.partial")
    (work / "done").mkdir(parents=True)
    (work / "info.json").write_text("{}")
    (work / "done/latency-24x32.json").write_text("of another runtime")
    ran = started(bare, there)
    assert ran.returncode == 0, ran.stderr
    assert not work.exists()


def test_what_a_runtime_raises_is_told_in_a_line(
    finished: Finished, bare: Path, tmp_path: Path
) -> None:
    """A model that the runtime there cannot read, as of a later version."""
    model = finished.bundle / "model/cpu-fp32/model.onnx"
    model.write_bytes(b"of the future")
    stated = manifest.read(finished.bundle)
    manifest.write(replace(stated, files=manifest.list_files(finished.bundle)), finished.bundle)
    there = make_kit(finished.bundle, "cpu", tmp_path / "device.pyz").file
    ran = started(bare, there)
    assert ran.returncode == 5
    assert "Traceback" not in ran.stderr
    assert "hint: a runtime older than the models may not read them: built with " in ran.stderr
    assert ", onnxruntime 1" in ran.stderr


def test_all_of_a_kit_is_python_3_10(kit: Path) -> None:
    with zipfile.ZipFile(kit) as packed:
        sources = [name for name in packed.namelist() if name.endswith(".py")]
        assert "pipeline/machine/remote/kit_program.py" in sources
        for name in sources:
            ast.parse(packed.read(name), name, feature_version=(3, 10))


@pytest.mark.parametrize("target", [SIMULATED, "jetson"])
def test_a_simulated_target_gets_a_kit_and_three_commands(once: Finished, target: str) -> None:
    assert (once.root / f"kit-{target}.pyz").is_file()
    assert not (once.root / "kit-cpu.pyz").exists()
    steps = once.said.out[once.said.out.index(f"{target} was not measured on the device") :]
    scp, there, back = steps.splitlines()[1:4]
    assert scp.strip().startswith(f"scp {once.root}/kit-{target}.pyz USER@DEVICE:")
    assert there.strip().startswith(f"python3 kit-{target}.pyz ")
    assert back.strip().startswith(f"mipkd-pipeline collect results.zip {once.root} ")


def test_a_bundle_alone_makes_a_kit_of_golden_images(
    finished: Finished, tmp_path: Path, ended: Command
) -> None:
    alone = tmp_path / "elsewhere" / "bundle"
    shutil.copytree(finished.bundle, alone)
    said = ended("kit", alone, "--target", "cpu", "-o", tmp_path / "k.pyz")
    assert said.code == 0
    assert "models: student fp32, student int8; 8 images" in said.out
    assert "golden images only, and no teacher" in said.out
    said = ended("kit", alone, "--target", "cup")
    assert (said.code, said.err.splitlines()[1][:20]) == (2, "hint: did you mean c")
    (alone / "model/cpu-fp32/model.onnx").write_bytes(b"")
    said = ended("kit", alone, "--target", "cpu", "-o", tmp_path / "l.pyz")
    assert said.code == 2
    assert "model/cpu-fp32/model.onnx is changed" in said.err
    assert not (tmp_path / "l.pyz").exists()


def forge(results: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Results with other figures, sealed as the kit seals them."""
    with zipfile.ZipFile(results) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    stated = json.loads(parts[job_file.RESULTS])
    change(stated)
    text = json.dumps(stated).encode()
    seal = job_file._seal(stated["job"], text).encode()
    with zipfile.ZipFile(to, "w") as packed:
        for name, content in (parts | {job_file.RESULTS: text, job_file.SEAL: seal}).items():
            packed.writestr(name, content)
    return to


def first_latency(stated: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stated["measurements"][0]["latencies"][0]
    return found


ABSURD = {
    "NaN": lambda s: first_latency(s).update(samples_s=[float("nan")] * 30),
    "one null": lambda s: first_latency(s)["samples_s"].__setitem__(3, None),
    "infinite": lambda s: first_latency(s)["samples_s"].__setitem__(0, float("inf")),
    "negative": lambda s: first_latency(s)["samples_s"].__setitem__(0, -0.1),
    "an age": lambda s: first_latency(s)["samples_s"].__setitem__(0, 1e300),
    "zero": lambda s: first_latency(s).update(samples_s=[0.0] * 30),
    "none": lambda s: first_latency(s).update(samples_s=[], invalid_because=""),
    "text": lambda s: first_latency(s).update(samples_s=["fast"]),
    "cold start": lambda s: first_latency(s).update(cold_start_s=None),
    "energy": lambda s: first_latency(s).update(joules_per_frame=-1.0),
    "memory": lambda s: first_latency(s).update(memory_bytes=-1),
    "size": lambda s: first_latency(s).update(size=[0, 32]),
    "no host": lambda s: [m.update(host=None) for m in s["measurements"]],
    "cores": lambda s: s["measurements"][0]["host"].update(cores=-4),
    "fewer models": lambda s: s["measurements"].pop(),
}


def test_figures_that_cannot_be_leave_the_run_as_it_was(
    finished: Finished, results: Path, tmp_path: Path, ended: Command
) -> None:
    def contents() -> dict[str, bytes]:
        files = (file for file in finished.root.rglob("*") if file.is_file())
        return {str(f): f.read_bytes() for f in files if not f.name.startswith("lock")}

    before = contents()
    for name, change in ABSURD.items():
        said = ended("collect", forge(results, tmp_path / "forged.zip", change), finished.root)
        assert said.code == 2, (name, said.err)
        assert said.err.startswith("error: "), name
        assert "Traceback" not in said.err
        assert contents() == before, name
    assert not (finished.root / "collected").exists()


def test_a_run_that_was_spoilt_by_them_opens_again(
    finished: Finished, results: Path, ended: Command
) -> None:
    own = measured(finished.root)["student", "fp32"]["latencies"]
    ended("collect", results, finished.root)
    kept = finished.root / "collected/cpu/record.json"
    for file in (kept, finished.root / "evidence.json"):  # as earlier versions stored them
        stated = json.loads(file.read_text())
        for m in stated["measurements"]:
            if m["device"] == "kit" and m["precision"] == "fp32":
                m["latencies"][0]["samples_s"] = [None] * 30
        file.write_text(json.dumps(stated))
    said = ended("report", finished.root)
    assert said.code == 2
    assert "the same run command makes it anew" in said.err
    said = ended(*finished.words, "--out", finished.root)
    assert said.code in EXIT.values(), said.err
    assert said.err.count("left aside") == 1
    assert measured(finished.root)["student", "fp32"]["latencies"] == own
    kept.write_bytes(b"[" * 100_000)
    said = ended(*finished.words, "--out", finished.root)
    assert said.code in EXIT.values(), said.err
    assert "left aside: damaged" in " ".join(said.err.split())
    said = ended("collect", results, finished.root)
    assert said.code in EXIT.values(), said.err
    assert measured(finished.root)["student", "fp32"]["device"] == "kit"


def test_a_model_that_was_changed_is_not_bundled(
    finished: Finished, results: Path, ended: Command
) -> None:
    kept = Run(finished.root).load_record("evidence.json", Evidence)
    models = {b.precision: b.file for b in kept.builts if b.target == SIMULATED}
    part = next(f for f in models["int8"].parent.rglob("*") if f.suffix in (".mlmodel", ".bin"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    before = (finished.bundle / "manifest.json").read_bytes()
    said = ended("collect", results, finished.root)
    assert said.code == 2
    assert f"{part.name} was changed since it was made" in said.err
    assert (finished.bundle / "manifest.json").read_bytes() == before
    assert not (finished.root / "collected").exists()
    said = ended(*finished.words, "--out", finished.root)
    assert f"{part.name} was changed since it was made, the step is" in " ".join(said.err.split())
    assert ended("collect", results, finished.root).code in EXIT.values()
