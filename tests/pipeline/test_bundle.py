"""A bundle is whole, tells of every change, and proves itself on another machine."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mipkd.core.errors import StageError
from mipkd.core.evidence import Evidence
from mipkd.core.images import read_rgb, write_png
from mipkd.core.records import Distilled, Rival
from pipeline.bundle import golden, licences, manifest, pack, provenance
from pipeline.bundle.golden import BundleConfig
from pipeline.run import Run

SIMULATED = "coreml"  # in the run of conftest.py
Finished = Any  # the record of conftest.py
Command = Callable[..., Any]
EXIT = {"PASS": 0, "FAIL": 6, "INVALID": 7}


def verdict(run: Finished) -> str:
    results = json.loads((run.root / "report/latest/results.json").read_text())
    return str(results["verdict"]["outcome"])


def test_a_run_leaves_a_bundle_that_holds_what_it_lists(once: Finished) -> None:
    assert once.said.code == EXIT[verdict(once)], once.said.err
    assert "not measured on the device: coreml, jetson" in once.said.out
    found = manifest.read(once.bundle)
    assert [m.name for m in found.models] == [
        *("cpu-fp32", "cpu-int8", "null-fp32"),
        *(f"{SIMULATED}-{m.precision}" for m in found.models if m.target == SIMULATED),
        *("jetson-fp32", "jetson-int8"),
    ]
    kinds = {m.target: m.kind for m in found.models}
    assert kinds == dict.fromkeys(("cpu", "null"), "measured") | dict.fromkeys(
        (SIMULATED, "jetson"), "simulated"
    )
    assert found.models[1].options == {"session.intra_op.allow_spinning": "0"}
    assert found.models[1].versions["onnxruntime"]
    assert {f.role for f in found.files.values()} == {
        *("bench", "card", "golden", "model", "provenance", "quality", "run", "sbom", "script"),
    }
    assert {
        "quality/cpu-int8.json",
        "bench/cpu-fp32-teacher.json",
        "golden/lr/blue-periwinkle.png",
    } <= {*found.files}
    assert not [n for n in found.files if n.endswith((".pkl", ".pt", ".pth", ".plan"))]
    assert not list(once.root.glob("*bundle?*"))


def test_figures_in_it_are_those_of_the_run(once: Finished) -> None:
    results = json.loads((once.root / "report/latest/results.json").read_text())
    for m in results["measurements"]:
        if (m["role"], m["target"]) != ("student", "cpu"):
            continue
        name = f"cpu-{m['precision']}.json"
        quality = json.loads((once.bundle / "quality" / name).read_text())
        assert quality["scores"] == m["scores"]
        bench = json.loads((once.bundle / "bench" / name).read_text())
        assert bench["latencies"] == m["latencies"]
        assert bench["host"]["cores"] >= 1
        assert bench["versions"]["onnxruntime"]


def test_nothing_of_the_makers_machine_is_in_it(once: Finished) -> None:
    places = [str(once.root.parent), str(Path.home()), str(Path(__file__).parents[2])]
    for file in (f for f in once.bundle.rglob("*") if f.is_file()):
        data = file.read_bytes()
        assert not [place for place in places if place.encode() in data], file


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("cannot read /home/ann/photos/a b.png", "cannot read a b.png"),
        ("--teacher '/data/rcan.pth', x", "--teacher 'rcan.pth', x"),
        ("~/mipkd 1/2 and/or https://a.b/c/d", "~/mipkd 1/2 and/or https://a.b/c/d"),
        ("on ssh://ann@10.0.0.7:22: gone", "on DEVICE: gone"),
        ("on docker://ann@lab7: gone", "on DEVICE: gone"),
    ],
)
def test_paths_and_addresses_are_cut(text: str, without: str) -> None:
    assert provenance.without_paths(text) == without


def test_no_path_of_the_maker_is_handed_on_whatever_its_letters(once: Finished) -> None:
    evidence = Run(once.root).load_record("evidence.json", Evidence)
    home = Path("/home/jane doe/secret runs")
    (plan,) = evidence.plans[:1] or (None,)
    assert plan is not None
    held = plan.holdout and replace(plan.holdout, lr=home / "lr.npy", hr=home / "hr.npy")
    rival = Rival("plain", evidence.student, None, (replace(plan, holdout=held),))
    config = evidence.config | {"device": {"address": "docker://jane@lab7", "tries": 3}}
    moved = replace(
        evidence,
        student=replace(evidence.student, file=home / "student.safetensors"),
        tests=replace(evidence.tests, folder=home),
        rivals=(rival,),
        config=config,
    )
    stated = provenance.provenance(moved, "", {})
    text = json.dumps(stated)
    assert not [word for word in ("jane", "secret", "lab7") if word in text.replace(home.name, "")]
    build = stated["predicate"]["buildDefinition"]
    given = {one["name"]: one.get("annotations", {}) for one in build["resolvedDependencies"]}
    assert given["student"]["file"] == "student.safetensors"
    assert build["externalParameters"]["config"]["device"] == {"tries": 3}
    (kept,) = provenance.run_facts(moved)["plans_of_rivals"]["plain"]
    assert kept["holdout"] is None


def test_a_manifest_from_before_precisions_were_read_back_keeps_its_seal(
    finished: Finished, ended: Command
) -> None:
    file = finished.bundle / "manifest.json"
    stated = json.loads(file.read_text())
    del stated["content"]
    for model in stated["models"]:
        assert model.pop("executes") is not None
    unsealed = json.dumps({**stated, "seal": ""}, sort_keys=True)
    stated["seal"] = hashlib.sha256(unsealed.encode()).hexdigest()
    file.write_text(json.dumps(stated))
    said = ended("verify", finished.bundle)
    assert "CHANGED" not in said.out, said.out


def test_the_card_says_what_a_user_must_know(once: Finished) -> None:
    text = (once.bundle / "README.md").read_text()
    assert "Smoke run on sample photos: not a result" in text
    assert re.search(r"\| coreml \(simulated\) \| fp32 \|.*not measured on the device \|\n", text)
    assert f"**Verdict: {verdict(once)}.**" in text
    assert "1. Model as given (`edsr`, weights " in text
    assert "Warning" not in text  # the teacher's licence is of no concern: it taught nothing
    assert "None" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "\n\n\n" not in text


def test_a_teachers_licence_goes_down_to_the_student(once: Finished, tmp_path: Path) -> None:
    evidence = Run(once.root).load_record("evidence.json", Evidence)
    taught = Distilled(evidence.student, tmp_path / "curves.jsonl", (), 2, 1.0, ("pixel",), 30.0)
    pack.pack(replace(evidence, distilled=taught), BundleConfig(), tmp_path / "b")
    text = (tmp_path / "b/README.md").read_text()
    assert "> **Warning:** The teacher's weights are under CC-BY-NC-4.0: not for commer" in text
    assert "1. Teacher (`edsr`, weights " in text
    assert "2. Student (`edsr`): Apache-2.0, inherited from the teacher" in text


def test_the_cards_example_runs(once: Finished, tmp_path: Path) -> None:
    shutil.copytree(once.bundle, tmp_path / "b")
    code = re.search(r"```python\n(.*?)```", (once.bundle / "README.md").read_text(), re.DOTALL)
    assert code
    subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path / "b", check=True)
    made = np.asarray(Image.open(tmp_path / "b" / "sr.png"))
    assert np.array_equal(made, read_rgb(once.bundle / "golden/cpu-int8/blue-periwinkle.png"))


@pytest.mark.parametrize(
    ("licence", "warns"),
    [
        *(("Apache-2.0", False), ("CC-BY-4.0", False), ("BSD-3-Clause", False), ("NCSA", False)),
        *(("unknown", True), ("", True), ("CC-BY-NC-SA-4.0", True), ("research only", True)),
        *(("Non-Commercial", True), ("noncommercial use", True)),
    ],
)
def test_a_licence_that_forbids_or_is_unknown_warns(
    once: Finished, licence: str, warns: bool
) -> None:
    student = Run(once.root).load_record("evidence.json", Evidence).student
    assert bool(licences.licence_warning(replace(student, licence=licence))) == warns


def test_verify_replays_every_model(once: Finished, ended: Command) -> None:
    said = ended("verify", once.bundle)
    assert said.code == 0, said.out
    assert (
        "same  cpu int8: every value equal; bound 16 levels, 45 dB; 3 images, 5 probes (100 dB)"
        in said.out
    )
    assert "same  coreml fp32: every value equal" in said.out
    assert "simulated here" in said.out
    assert "not replayed  null fp32: the bundle has no golden outputs of it" in said.out
    count = len(manifest.read(once.bundle).models)
    ends = f"replayed: {count - 1} of {count} models on this machine\nverify: PASS\n"
    assert said.out.endswith(ends)


@pytest.mark.parametrize(
    "name",
    [
        "model/cpu-int8/model.onnx",
        "model/coreml-fp32/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        "golden/cpu-fp32/blue-periwinkle.png",
        "README.md",
    ],
)
def test_one_flipped_bit_is_told(finished: Finished, name: str, ended: Command) -> None:
    file = finished.bundle / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    said = ended("verify", finished.bundle)
    assert said.code == 6
    assert f"CHANGED  {name}\n" in said.out
    assert "verify: FAIL" in said.out
    if name.startswith("model/"):
        assert ": its files are not those of the bundle" in said.out
    check = ended("check", finished.bundle)
    assert check.code == 6
    assert check.out == f"CHANGED  {name}\ncheck: FAIL\n"


def test_missing_and_foreign_files_are_told(finished: Finished, ended: Command) -> None:
    (finished.bundle / "quality/cpu-fp32.json").unlink()
    inside = finished.bundle / "model/coreml-fp32/model.mlpackage/Data/more.bin"
    inside.write_bytes(b"x")
    (finished.bundle / "model/cpu-fp32/engines").mkdir()
    (finished.bundle / "model/cpu-fp32/engines/a.plan").write_bytes(b"looked for by a runtime")
    (finished.bundle / "golden/more").symlink_to(finished.root)
    said = ended("verify", finished.bundle)
    assert said.code == 6
    lines = said.out.splitlines()
    for line in (
        "MISSING  quality/cpu-fp32.json",
        "A LINK  golden/more: where it leads nothing is hashed",
        "NOT OF THIS BUNDLE  model/coreml-fp32/model.mlpackage/Data/more.bin",
        "NOT OF THIS BUNDLE  model/cpu-fp32/engines/a.plan: an older version kept what it compiled "
        "here: delete the folder engines",
    ):
        assert line in lines, said.out
    assert "not replayed  cpu fp32: its files are not those of the bundle" in said.out


def test_a_changed_manifest_is_told(finished: Finished, ended: Command) -> None:
    file = finished.bundle / "manifest.json"
    stated = json.loads(file.read_text())
    stated["models"][0]["options"] = {}
    file.write_text(json.dumps(stated))
    said = ended("verify", finished.bundle)
    assert said.code == 6
    assert "CHANGED  manifest.json" in said.out


def test_another_schema_or_no_bundle_is_a_wrong_input(
    finished: Finished, tmp_path: Path, ended: Command
) -> None:
    file = finished.bundle / "manifest.json"
    whole = json.loads(file.read_text())
    for text, what in (
        (json.dumps(whole | {"schema": 2}), "its schema is 2, this program reads 1"),
        ("[]", "its schema is None"),
        ("{", "damaged: "),
        (json.dumps(whole | {"scale": "wide"}), "damaged: scale: "),
        (json.dumps(whole | {"files": {"../x": whole["files"]["README.md"]}}), "leads out of"),
    ):
        file.write_text(text)
        for command in ("verify", "check", "bench"):
            said = ended(command, finished.bundle)
            assert said.code == 2
            assert what in said.err
            assert "hint: " in said.err
    said = ended("verify", tmp_path)
    assert said.code == 2
    assert "manifest.json: no bundle: No such file" in said.err


def test_outputs_that_differ_fail_even_with_right_hashes(
    finished: Finished, ended: Command
) -> None:
    file = finished.bundle / "golden/cpu-fp32/blue-periwinkle.png"
    image = read_rgb(file)
    image[0, 0, 0] ^= 16
    write_png(file, image)
    stated = manifest.read(finished.bundle)
    manifest.write(replace(stated, files=manifest.list_files(finished.bundle)), finished.bundle)
    said = ended("verify", finished.bundle)
    assert said.code == 6
    assert "DIFFERS  cpu fp32: up to 16 levels apart, 0.00% of values" in said.out
    assert "CHANGED" not in said.out


def test_check_judges_as_the_run_did_and_asks_for_devices(once: Finished, ended: Command) -> None:
    said = ended("check", once.bundle)
    assert said.code == (6 if verdict(once) == "FAIL" else 7)
    assert "INVALID coreml: measured: not measured on the device" in said.out
    assert "PASS    cpu int8: worst drop 0." in said.out
    results = json.loads((once.root / "report/latest/results.json").read_text())
    for gate in results["verdict"]["gates"]:
        assert f"{gate['outcome']:<8}{gate['subject']}: {gate['name']}" in said.out
    assert "PASS    cpu int8: replay 0.000 levels" in said.out


@pytest.mark.usefixtures("figures_alone")
def test_check_of_measured_targets_alone_gives_the_runs_verdict(
    finished: Finished, tmp_path: Path, ended: Command
) -> None:
    evidence = Run(finished.root).load_record("evidence.json", Evidence)
    here = replace(
        evidence,
        builts=tuple(b for b in evidence.builts if b.target == "cpu"),
        measurements=tuple(m for m in evidence.measurements if not m.simulated),
    )
    pack.pack(here, BundleConfig(), tmp_path / "b")
    assert ended("check", tmp_path / "b").code == EXIT[verdict(finished)]


@pytest.mark.usefixtures("figures_alone")
def test_check_fails_by_the_bounds_in_the_bundle(
    finished: Finished, tmp_path: Path, ended: Command
) -> None:
    evidence = Run(finished.root).load_record("evidence.json", Evidence)
    gates = evidence.config["gates"] | {"max_worst_drop_db": -20.0}
    pack.pack(
        replace(evidence, config=evidence.config | {"gates": gates}), BundleConfig(), tmp_path / "b"
    )
    said = ended("check", tmp_path / "b")
    assert said.code == 6
    assert "FAIL    cpu int8: worst drop" in said.out


def test_check_loads_no_network(once: Finished) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.judge.check import check\n"
        f"check(Path({str(once.bundle)!r}))\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'coremltools'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bench_measures_the_models_here(once: Finished, tmp_path: Path, ended: Command) -> None:
    words = ("--target", "cpu,coreml", "--json", tmp_path / "b.json", "--stream", "20")
    said = ended("bench", once.bundle, *words, "--set", "bench.stream.seconds=0.5")
    assert said.code in (0, 7), said.err  # a busy machine
    assert "coreml: this machine could only simulate it" in said.out
    found = json.loads((tmp_path / "b.json").read_text())
    cpu = [m for m in found["measurements"] if m["target"] == "cpu"]
    assert [m["precision"] for m in cpu] == ["fp32", "int8"]
    assert [one["size"] for one in cpu[0]["latencies"]] == [[24, 32], [32, 32]]
    assert all(len(one["samples_s"]) >= 20 for m in cpu for one in m["latencies"])
    assert [(m["stream"]["size"], m["stream"]["given"]) for m in cpu] == [([32, 32], 10)] * 2
    assert "YUV 4:2:0, BT.709, limited range in and out; the newest frame waits" in said.out
    said = ended("bench", once.bundle, "--target", "openvio")
    assert (said.code, said.err.splitlines()[0]) == (2, "error: --target: no model for 'openvio'")
    said = ended("bench", once.bundle, "--target", "coreml")
    assert said.code == 4


def test_a_script_for_vapoursynth_names_the_model_and_its_scale(once: Finished) -> None:
    text = (once.bundle / "upscale.vpy").read_text()
    assert "never ran" in text.splitlines()[1]
    assert "SCALE, MULTIPLE = 2, 1" in text
    (file,) = [
        one.value
        for one in ast.walk(ast.parse(text))
        if isinstance(one, ast.Constant) and str(one.value).endswith(".onnx")
    ]
    assert file == "model/cpu-fp32/model.onnx"
    assert (once.bundle / file).is_file()


def test_a_new_run_replaces_the_bundle(finished: Finished, ended: Command) -> None:
    said = ended(*finished.words, "--out", finished.root, "--set", "bundle.golden_images=1")
    assert "bundle: " in said.out
    assert len(list((finished.bundle / "golden/lr").glob("*.png"))) == 1
    assert not list(finished.root.glob("bundle.*"))


def test_golden_images_are_bounded(once: Finished) -> None:
    tests = Run(once.root).load_record("evidence.json", Evidence).tests
    assert golden.choose(tests, BundleConfig(golden_images=2)) == tests.images[:2]
    assert len(golden.choose(tests, BundleConfig(golden_pixels=10))) == 1


@pytest.mark.parametrize("trouble", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_trouble_while_packing_leaves_the_old_bundle(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    evidence = Run(finished.root).load_record("evidence.json", Evidence)

    def stop(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(pack, "write_measurements", stop)
    with pytest.raises((StageError, KeyboardInterrupt)) as caught:
        pack.pack(evidence, BundleConfig(), finished.bundle)
    if isinstance(trouble, OSError):
        assert "bundle: no space left on the disk" in str(caught.value)
    assert not manifest.problems(finished.bundle, manifest.read(finished.bundle))
    assert not list(finished.root.glob("bundle.*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(finished: Finished) -> None:
    evidence = Run(finished.root).load_record("evidence.json", Evidence)
    finished.root.chmod(0o500)
    try:
        with pytest.raises(StageError, match="bundle: Permission denied"):
            pack.pack(evidence, BundleConfig(), finished.bundle)
    finally:
        finished.root.chmod(0o700)


def test_help_names_what_a_user_needs(ended: Command) -> None:
    said = ended("--help").out
    for command in ("verify", "bench", "check", "kit", "collect"):
        line = next(x for x in said.splitlines() if x.startswith(f"  {command} "))
        assert not line.endswith("...")


def test_a_bundle_is_not_timed_by_settings_that_lie_in_the_working_folder(
    once: Finished, ended: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mipkd.toml").write_text('[device]\naddress = "ssh://x"\n')
    monkeypatch.chdir(tmp_path)
    said = ended("bench", once.bundle)
    assert said.code == 2
    assert "[device] is taken only from options or a file that is named" in said.err
