"""`check --baseline`: an earlier bundle or a file of figures, as a CI system would call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.bundle import manifest
from pipeline.judge.baseline import load

Finished = Any  # the record of conftest.py
Command = Callable[..., Any]

# Nothing is asked about speed: other work on the machine would decide.
CALM = ("--set", "baseline.max_slowdown=off")


@pytest.fixture
def kept(once: Finished, tmp_path: Path, ended: Command) -> Path:
    """The run's own figures as a file."""
    file = tmp_path / "baseline.json"
    said = ended(
        *("check", once.bundle, "--baseline", file),
        *("--update-baseline", "--reason", "first release"),
    )
    assert said.code == 0, said.err
    return file


def anew(bundle: Path) -> None:
    """Write the manifest of files that a test has changed."""
    stated = manifest.read(bundle)
    manifest.write(replace(stated, files=manifest.list_files(bundle)), bundle)


def changed(bundle: Path, name: str, edit: Callable[[Any], None]) -> None:
    """Edit a JSON file of a bundle."""
    file = bundle / name
    stated = json.loads(file.read_text())
    edit(stated)
    file.write_text(json.dumps(stated))
    anew(bundle)


def lines(said: Any, what: str) -> list[str]:
    return [line for line in said.out.splitlines() if f": {what} " in line]


@pytest.mark.usefixtures("figures_alone")
def test_a_bundle_against_its_own_figures(once: Finished, kept: Path, ended: Command) -> None:
    said = ended("check", once.bundle, "--baseline", kept, *CALM)
    assert "Traceback" not in said.err
    for what in ("mean loss", "worst loss", "loss of the worst 5 %", "new channel shift"):
        found = lines(said, what)  # three images are too few to show that no mean loss hides
        outcome = "INVALID" if what == "mean loss" else "PASS"
        models = {line.removeprefix(outcome).strip().partition(":")[0] for line in found}
        wanted = {f"{t} {p}" for t in ("coreml", "cpu", "jetson") for p in ("fp32", "int8")}
        assert models == wanted, said.out
    plain = ended("check", once.bundle)
    assert said.code == plain.code


@pytest.mark.usefixtures("figures_alone")
def test_a_bundle_in_turns_with_an_earlier_one(
    once: Finished, finished: Finished, ended: Command
) -> None:
    quick = ("--set", "bench.sizes=[[24,32]]", "--set", "bench.min_time_s=0.05")
    said = ended("check", finished.bundle, "--baseline", once.bundle, *quick)
    slow = lines(said, "slowdown at 32x24")
    assert {line.split(":")[0].split()[1] for line in slow} == {"cpu", "null"}
    assert all("in turns" in line for line in slow)


@pytest.mark.usefixtures("figures_alone")
def test_a_lost_tenth_of_a_decibel_fails(
    finished: Finished, kept: Path, tmp_path: Path, ended: Command
) -> None:
    def worse(stated: Any) -> None:
        for score in stated["scores"]:
            score["metrics"]["psnr_y"] -= 0.1

    changed(finished.bundle, "quality/cpu-int8.json", worse)
    files = (tmp_path / "s.md", tmp_path / "j.xml")
    words = ("--summary", files[0], "--junit", files[1], "--github")
    words = (*words, "--set", "baseline.max_tail_loss_db=0.05")
    said = ended("check", finished.bundle, "--baseline", kept, *CALM, *words)
    assert said.code == 6
    assert "FAIL    cpu int8: mean loss 0.100 dB (bound 0.05 dB)" in said.out
    title = "::error title=mipkd-pipeline check::cpu int8"
    assert f"{title}: mean loss 0.100 dB: 3 images" in said.out
    assert f"{title}: loss of the worst 5 %25 0.100 dB" in said.out
    assert "| cpu int8 | mean loss | 0.100 dB | 0.05 dB |" in files[0].read_text()
    suite = ET.parse(files[1]).getroot()[0]
    failed = [case.get("classname") for case in suite if case.find("failure") is not None]
    assert "cpu int8" in failed
    said = ended(
        "check", finished.bundle, "--baseline", kept, *CALM, "--set", "baseline.max_loss_db=0.2"
    )
    assert "FAIL    cpu int8: mean loss" not in said.out


@pytest.mark.usefixtures("figures_alone")
def test_reasons_are_kept(once: Finished, kept: Path, ended: Command) -> None:
    words = ("check", once.bundle, "--baseline", kept, "--update-baseline")
    said = ended(*words, "--reason", "new photos")
    assert "reason 2: new photos" in said.out
    assert [reason.text for reason in load(kept).reasons] == ["first release", "new photos"]
    said = ended(*words)
    assert said.code == 2
    assert "no reason" in said.err
    said = ended("check", once.bundle, "--update-baseline", "--reason", "x")
    assert said.code == 2
    assert "--baseline FILE.json" in said.err


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("scale", 3, "another scale: x3 there, x2 in the bundle"),
        ("tests", "0" * 64, "another test set: "),
        ("protocol", "PSNR of RGB", "another protocol: PSNR of RGB there"),
        ("schema", 9, "its schema is 9, this program reads 2"),
        ("kind", "a song", "no baseline of this program"),
        ("measurements", [1], "damaged: measurements.0: no Measurement: 1"),
    ],
)
@pytest.mark.usefixtures("figures_alone")
def test_what_cannot_be_compared_is_refused(
    name: str, value: object, told: str, once: Finished, kept: Path, ended: Command
) -> None:
    stated = json.loads(kept.read_text())
    kept.write_text(json.dumps(stated | {name: value}))
    said = ended("check", once.bundle, "--baseline", kept)
    assert said.code == 2
    assert told in said.err
    assert "hint: " in said.err


@pytest.mark.usefixtures("figures_alone")
def test_files_that_are_no_baseline(once: Finished, tmp_path: Path, ended: Command) -> None:
    said = ended("check", once.bundle, "--baseline", tmp_path / "none.json")
    assert (said.code, "No such file" in said.err) == (2, True)
    (tmp_path / "half.json").write_text('{"kind"')
    said = ended("check", once.bundle, "--baseline", tmp_path / "half.json")
    assert (said.code, "damaged" in said.err) == (2, True)


@pytest.mark.usefixtures("figures_alone")
def test_a_baseline_with_changed_files_is_refused(
    once: Finished, finished: Finished, ended: Command
) -> None:
    with (finished.bundle / "quality/cpu-int8.json").open("a") as file:
        file.write(" ")
    said = ended("check", once.bundle, "--baseline", finished.bundle)
    assert said.code == 2
    assert "quality/cpu-int8.json is changed" in said.err
    said = ended("check", finished.bundle, "--baseline", once.bundle)
    assert said.code == 6
    assert "CHANGED  quality/cpu-int8.json" in said.out


def test_it_loads_no_torch(once: Finished, kept: Path) -> None:
    code = (
        "import sys\n"
        "from pipeline.cli import app\n"
        f"words = ['check', {str(once.bundle)!r}, '--baseline', {str(kept)!r}]\n"
        "words += ['--set', 'baseline.max_loss_db=0.1']\n"
        "try:\n    app(words)\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'onnx', 'coremltools'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_script_of_the_ci_action(
    once: Finished, kept: Path, tmp_path: Path, ended: Command
) -> None:
    """Its steps as a runner of GitHub takes them; what it would install is there already."""
    script = Path(__file__).parents[2] / "docs/ci/check.sh"
    summary, output = tmp_path / "summary.md", tmp_path / "output"
    env = os.environ | {
        "MIPKD_PIPELINE": str(Path(sys.executable).with_name("mipkd-pipeline")),
        "BUNDLE": str(once.bundle),
        "BASELINE": str(kept),
        "SETTINGS": "baseline.max_slowdown=off baseline.max_growth=0.5",
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(output),
    }
    said = subprocess.run(["bash", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert said.returncode == 6, said.stderr  # nothing is half as large as itself
    assert "::error title=mipkd-pipeline check::cpu int8: size 1.000 x" in said.stdout
    assert "### ❌ run: FAIL" in summary.read_text()
    junit = output.read_text().strip().removeprefix("junit=")
    assert ET.parse(junit).getroot()[0].get("name") == "run"


def test_the_action_calls_that_script_with_what_it_reads() -> None:
    root = Path(__file__).parents[2]
    action, script = (root / "action.yml").read_text(), (root / "docs/ci/check.sh").read_text()
    assert "docs/ci/check.sh" in action
    assert "docs/ci/check.sh" in (root / "docs/ci/gitlab.yml").read_text()
    for name in ("BUNDLE", "BASELINE", "SETTINGS", "REQUIREMENTS"):
        assert f"{name}: ${{{{ inputs.{name.lower()} }}}}" in action
        assert f"${name}" in script.replace("${", "$")


# Hides every package that the gate's list does not name, then checks a bundle.
_IN_THE_GATE = """
import re, sys
from importlib.metadata import packages_distributions
names = re.findall(r"^([\\w.-]+)==", open(sys.argv[1]).read(), re.MULTILINE)
installed = {name.lower() for name in names} | {"mipkd-pipeline"}
class Installed:
    made_by, finders = packages_distributions(), list(sys.meta_path)
    def find_spec(self, name, path=None, target=None):
        makers = {one.lower().replace("_", "-") for one in self.made_by.get(name, ())}
        if makers and not makers & installed:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec), None)
sys.meta_path[:] = [Installed()]
from pipeline import cli
cli.app(["check", *sys.argv[2:]])
"""


def test_check_needs_no_package_that_the_gate_does_not_install(once: Finished) -> None:
    root = Path(__file__).parents[2]
    words = ["--baseline", str(once.bundle), "--set", "bench.sizes=[[24,32]]"]
    ran = subprocess.run(
        [sys.executable, "-c", _IN_THE_GATE, "docs/ci/requirements.txt", str(once.bundle), *words],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert ran.returncode in (0, 6, 7), ran.stderr
    assert "\ncheck: " in ran.stdout
    assert "No module named" not in ran.stdout + ran.stderr


@pytest.mark.usefixtures("figures_alone")
def test_a_misspelt_setting_is_told_with_the_nearest(
    once: Finished, kept: Path, ended: Command
) -> None:
    said = ended("check", once.bundle, "--baseline", kept, "--set", "baseline.max_los_db=1")
    assert said.code == 2
    assert "baseline.max_los_db: unknown setting" in said.err
    assert "did you mean max_loss_db?" in said.err
